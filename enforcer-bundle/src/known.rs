//! What stands in for a bundle on a node that must not run without one and has none.

use super::catalogue::catalogue;
use super::model::{Bundle, Credential, Declassify, Defaults, Labels, Metadata, Source};

/// A bundle that denies everybody what the [`catalogue`] says may be denied then, on a host with these homes (as
/// [`home_patterns`](super::home_patterns) has them). Environment variables are not among it: a program that has one is no
/// thief. Nobody has issued it, so its version is 0.
#[must_use]
pub fn known(homes: &[String]) -> Bundle {
    let denied = catalogue().iter().filter(|it| it.denied_without_bundle());
    let credentials = denied.filter_map(|entry| {
        let mut sources = entry.sources(homes);
        sources.retain(|source| !matches!(source, Source::Environment(_)));
        (!sources.is_empty()).then(|| Credential {
            id: entry.id.clone(),
            owner: None,
            exclusive: false,
            follow: false,
            sources,
            nodes: Labels::new(),
        })
    });
    Bundle {
        metadata: Metadata {
            issuer: "built-in".to_owned(),
            version: 0,
            issued_at: None,
            expires_at: None,
        },
        defaults: Defaults::default(),
        trusted: Vec::new(),
        maintenance: Vec::new(),
        declassify: Declassify::default(),
        baseline: Vec::new(),
        credentials: credentials.collect(),
        workloads: Vec::new(),
        entitlements: Vec::new(),
        digest: "built-in".to_owned(),
    }
}
