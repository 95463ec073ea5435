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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::compile::{Facts, Numbering, compile};

    #[test]
    fn the_known_locations_are_a_bundle_that_fits() {
        let bundle = match known() {
            Ok(bundle) => bundle,
            Err(mistakes) => panic!("{mistakes}"),
        };
        assert!(bundle.workloads.is_empty() && bundle.entitlements.is_empty());
        assert!(bundle.trusted.is_empty() && bundle.baseline.is_empty());
        assert_eq!(bundle.metadata.version, 0);
        let policy = compile(&bundle, &Facts::default(), &mut Numbering::default(), &[]);
        let policy = match policy {
            Ok(policy) => policy,
            Err(error) => panic!("{error}"),
        };
        for (path, denied) in [
            ("/root/.ssh/id_ed25519", true),
            ("/home/ada/.aws/credentials", true),
            ("/home/ada/.kube/config", true),
            ("/etc/ssl/private/site/key.pem", true),
            ("/run/docker.sock", true),
            ("/home/ada/.ssh/known_hosts", false),
            // Without these nobody gets in to bring the bundle.
            ("/etc/shadow", false),
            ("/etc/ssh/ssh_host_ed25519_key", false),
            ("/var/lib/kubelet/pki/kubelet-client-current.pem", false),
        ] {
            let found = policy.credential_of(Path::new(path));
            assert_eq!(found.is_some(), denied, "{path}");
        }
    }
}
