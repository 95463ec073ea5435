//! What only shows when all documents are known: ids, references, scopes, limits.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;

use super::MAX_GRANTS;
use super::catalogue::entries;
use super::mistake::{Place, Report, did_you_mean, quoted};
use super::model::{Bundle, Source, Workload};
use super::schema::{CredentialDraft, Draft, EntitlementDraft, Named, Placed, Scope};

/// Among more ids than this, none is proposed for a reference that leads nowhere.
const MAX_PROPOSALS: usize = 1000;

/// The bundle the draft makes. `None` after a mistake; every mistake has been reported.
pub(super) fn validate(
    mut draft: Draft,
    start: &Place,
    digest: String,
    report: &mut Report,
) -> Option<Bundle> {
    unique_ids(&draft.credentials, report);
    unique_ids(&draft.workloads, report);
    unique_ids(&draft.entitlements, report);
    at_most_one(&draft.metadata, report);
    at_most_one(&draft.defaults, report);
    if !draft.incomplete {
        if draft.metadata.is_empty() {
            report.add(
                start,
                "the bundle has no `metadata`; add `metadata: {issuer: ..., version: ...}`",
            );
        }
        references(&draft, report);
    }
    unique_sources(&draft.credentials, report);
    unique_selectors(&draft.workloads, report);
    scopes(&draft, report);
    grants(&draft.entitlements, report);

    let defaults = match draft.defaults.pop() {
        Some(defaults) => defaults.value?,
        None => Default::default(),
    };
    Some(Bundle {
        metadata: draft.metadata.pop()?.value?,
        defaults,
        trusted: draft.trusted,
        maintenance: draft.maintenance,
        declassify: draft.declassify,
        baseline: draft.baseline,
        credentials: draft
            .credentials
            .into_iter()
            .map(|named| Some(named.value?.credential))
            .collect::<Option<_>>()?,
        workloads: draft
            .workloads
            .into_iter()
            .map(|named| Some(named.value?.value))
            .collect::<Option<_>>()?,
        entitlements: draft
            .entitlements
            .into_iter()
            .map(|named| Some(named.value?.entitlement))
            .collect::<Option<_>>()?,
        digest,
    })
}

fn at_most_one<T>(sections: &[Placed<T>], report: &mut Report) {
    let Some((first, others)) = sections.split_first() else {
        return;
    };
    for other in others {
        let message = format!(
            "already given at {}; a bundle has it once, in one of its documents",
            first.place
        );
        report.add(&other.place, message);
    }
}

/// Reports each key that came before. `message` gets the place where it came first.
fn unique<'a, K: Eq + Hash>(
    keys: impl Iterator<Item = (K, &'a Place)>,
    report: &mut Report,
    message: impl Fn(&K, &Place) -> String,
) {
    let mut seen: HashMap<K, &Place> = HashMap::new();
    for (key, place) in keys {
        match seen.entry(key) {
            Entry::Vacant(free) => {
                free.insert(place);
            }
            Entry::Occupied(first) => report.add(place, message(first.key(), first.get())),
        }
    }
}

fn unique_ids<T>(all: &[Named<T>], report: &mut Report) {
    let ids = all
        .iter()
        .map(|named| (named.id.value.as_str(), &named.id.place));
    unique(ids, report, |id, first| {
        format!(
            "the id {} is already used at {first}; choose another",
            quoted(id)
        )
    });
}

fn unique_sources(credentials: &[Named<CredentialDraft>], report: &mut Report) {
    let drafts = credentials.iter().filter_map(|named| named.value.as_ref());
    let sources = drafts.flat_map(|draft| draft.credential.sources.iter().zip(&draft.places));
    let sources = sources.flat_map(|(source, place)| {
        let parts: Vec<Cow<'_, Source>> = match source {
            // A path is one place, whatever is expected there.
            Source::Socket(path) => vec![Cow::Owned(Source::File(path.clone()))],
            Source::Catalogue(id) => entries(id)
                .map(|entry| Cow::Owned(Source::Catalogue(entry.id.clone())))
                .collect(),
            _ => vec![Cow::Borrowed(source)],
        };
        parts.into_iter().map(move |part| (part, place))
    });
    unique(sources, report, |source, first| {
        let what = match source.as_ref() {
            Source::Endpoint(_) => "endpoint",
            Source::AbstractSocket(_) => "socket",
            Source::Environment(_) => "variable",
            Source::Catalogue(id) => {
                return format!(
                    "the catalogue's `{id}` is already a source at {first}; it belongs to one credential, once"
                );
            }
            Source::KubernetesSecret(_) => "secret",
            Source::ServiceAccountToken(_) => "token",
            _ => "path",
        };
        format!(
            "this {what} is already a source at {first}; one {what} belongs to one credential, once"
        )
    });
}

fn unique_selectors(workloads: &[Named<Placed<Workload>>], report: &mut Report) {
    let matches = workloads.iter().filter_map(|named| named.value.as_ref());
    unique(
        matches.map(|found| (&found.value.selectors, &found.place)),
        report,
        |_, first| {
            format!(
                "the workload at {first} selects by the very same facts; make one workload of them"
            )
        },
    );
}

fn references(draft: &Draft, report: &mut Report) {
    let credentials = Ids::of("credential", &draft.credentials);
    let workloads = Ids::of("workload", &draft.workloads);
    for entitlement in drafts(&draft.entitlements) {
        workloads.require(
            &entitlement.entitlement.workload,
            &entitlement.workload,
            report,
        );
        credentials.require(
            &entitlement.entitlement.credential,
            &entitlement.credential,
            report,
        );
    }
}

/// The ids of one kind, by which they are referred to.
struct Ids<'a, T> {
    kind: &'static str,
    known: HashMap<&'a str, Option<&'a T>>,
}

impl<'a, T> Ids<'a, T> {
    fn of(kind: &'static str, all: &'a [Named<T>]) -> Self {
        Self {
            kind,
            known: all
                .iter()
                .map(|named| (named.id.value.as_str(), named.value.as_ref()))
                .collect(),
        }
    }

    /// The ids to propose, in order; none if there are too many to compare.
    fn proposals(&self) -> Vec<&'a str> {
        let few = self.known.len() <= MAX_PROPOSALS;
        let mut ids: Vec<&str> = self.known.keys().copied().filter(|_| few).collect();
        ids.sort_unstable();
        ids
    }

    fn require(&self, id: &str, place: &Place, report: &mut Report) {
        if self.known.contains_key(id) {
            return;
        }
        if report.is_full() {
            return report.omit();
        }
        let kind = self.kind;
        let hint = did_you_mean(id, self.proposals());
        let hint = if hint.is_empty() {
            format!("; add one to `{kind}s`, or remove the entitlement")
        } else {
            hint
        };
        report.add(
            place,
            format!("there is no {kind} with the id {}{hint}", quoted(id)),
        );
    }
}

fn drafts(entitlements: &[Named<EntitlementDraft>]) -> impl Iterator<Item = &EntitlementDraft> {
    entitlements.iter().filter_map(|named| named.value.as_ref())
}

/// Whoever reads holds, and a holder that may go nowhere is more often a slip than a wish. An endpoint is itself a
/// place to go.
fn scopes(draft: &Draft, report: &mut Report) {
    let credentials = Ids::of("credential", &draft.credentials);
    for EntitlementDraft {
        entitlement, scope, ..
    } in drafts(&draft.entitlements)
    {
        let credential = credentials
            .known
            .get(entitlement.credential.as_str())
            .copied()
            .flatten();
        let has_local =
            credential.is_some_and(|draft| draft.credential.sources.iter().any(Source::is_local));
        if has_local && scope.value == Scope::Unsaid {
            let message = "expected `destinations` with at least one destination; if the workload may read the \
                           credential and reach nowhere, write `destinations: none`";
            report.add(&scope.place, message);
        }
    }
}

fn grants(entitlements: &[Named<EntitlementDraft>], report: &mut Report) {
    let mut counts: HashMap<(&str, &str), usize> = HashMap::new();
    for draft in drafts(entitlements) {
        let (workload, credential) = (
            draft.entitlement.workload.as_str(),
            draft.entitlement.credential.as_str(),
        );
        let count = counts.entry((workload, credential)).or_default();
        *count += 1;
        if *count > MAX_GRANTS {
            let pair = format!(
                "workload {} and credential {}",
                quoted(workload),
                quoted(credential)
            );
            let message = format!(
                "got {count} entitlements for {pair}, expected at most {MAX_GRANTS}; merge some of them"
            );
            report.add(&draft.credential, message);
        }
    }
}
