//! Where credentials are known to lie, for a node that must not run without a bundle and has none.

use super::load::parse;
use super::mistake::Mistakes;
use super::model::Bundle;

/// The bundle itself, as anybody would write it.
const TEXT: &str = include_str!("known.yaml");

/// A bundle that denies everybody the known locations. Nobody has issued it, so its version is 0.
///
/// # Errors
/// None, unless the text that was built in is wrong, which a test would have told.
pub fn known() -> Result<Bundle, Mistakes> {
    let mut bundle = parse(&[("built-in".into(), TEXT.to_owned())])?;
    bundle.metadata.version = 0;
    Ok(bundle)
}
