//! From sources that only the node can place to the places that they are here.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::bundle::{Bundle, Credential, Source, entries};

use super::Facts;

/// A source of which something is not protected here.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Uncovered {
    /// The credential's id.
    pub credential: String,
    /// The source, as in [`Source`]'s words.
    pub source: String,
    /// What is not, and what to do.
    pub reason: &'static str,
}

const NO_PODS: &str = "nothing tells this node which volumes of its pods it is in; name kubelet's directory as a `directory`, or a `file` in it";
const IN_CONTAINERS: &str = "of what is in containers' own file systems only what is there when they start is protected; `enforcer credentials scan` finds the rest";

/// What each credential has of the catalogue.
pub(super) fn catalogue(bundle: &Bundle) -> BTreeMap<String, Vec<String>> {
    let of = |credential: &Credential| {
        let ids = credential.sources.iter().filter_map(|source| match source {
            Source::Catalogue(id) => Some(id.clone()),
            _ => None,
        });
        let ids: Vec<String> = ids.collect();
        (!ids.is_empty()).then(|| (credential.id.clone(), ids))
    };
    bundle.credentials.iter().filter_map(of).collect()
}

/// The bundle with every source at its places on this node, and what has none. A large one is only copied if some source
/// has to be placed.
pub(super) fn placed<'a>(bundle: &'a Bundle, facts: &Facts) -> (Cow<'a, Bundle>, Vec<Uncovered>) {
    let mut uncovered = Vec::new();
    let sources = bundle.credentials.iter().flat_map(|it| &it.sources);
    let says_so_itself = |source: &Source| places(source, facts) == (None, None);
    if sources.into_iter().all(says_so_itself) {
        return (Cow::Borrowed(bundle), uncovered);
    }
    let mut bundle = bundle.clone();
    for credential in &mut bundle.credentials {
        let sources = std::mem::take(&mut credential.sources);
        for source in sources {
            let (places, reason) = places(&source, facts);
            uncovered.extend(reason.map(|reason| Uncovered {
                credential: credential.id.clone(),
                source: source.to_string(),
                reason,
            }));
            credential.sources.extend(places.unwrap_or(vec![source]));
        }
    }
    (Cow::Owned(bundle), uncovered)
}

/// Where a source is, unless it says so itself, and why that is not all.
fn places(source: &Source, facts: &Facts) -> (Option<Vec<Source>>, Option<&'static str>) {
    let pods = facts.pods.as_ref();
    let no_pods = pods.is_none().then_some(NO_PODS);
    match source {
        Source::Catalogue(id) => {
            let sources = entries(id).flat_map(|entry| entry.sources(&facts.homes));
            let elsewhere = entries(id).any(|it| !it.paths.is_empty() || !it.containers.is_empty());
            (Some(sources.collect()), elsewhere.then_some(IN_CONTAINERS))
        }
        Source::KubernetesSecret(secret) => {
            let sources = pods.map(|it| it.secret(secret));
            (Some(sources.unwrap_or_default()), no_pods)
        }
        Source::ServiceAccountToken(audience) => {
            let sources = pods.map(|it| it.tokens(audience.as_deref()));
            (Some(sources.unwrap_or_default()), no_pods)
        }
        _ => (None, None),
    }
}
