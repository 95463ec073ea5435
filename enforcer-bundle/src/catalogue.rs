//! Where credentials are known to lie: the data of `catalogue.yaml`, and what a bundle makes of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::model::Source;
use super::values;

static ENTRIES: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    let text = include_str!("../catalogue.yaml");
    serde_saphyr::from_str(text).expect("the catalogue that is built in is good, as a test says")
});

/// One credential that many nodes have.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Entry {
    /// Words with dots between them; unique.
    pub id: String,
    /// Whose it is, for people.
    pub provider: String,
    /// What it is.
    pub kind: Kind,
    /// Patterns for files on the host and in containers. `~` is each home directory.
    #[serde(default)]
    pub paths: Vec<String>,
    /// Patterns for files on the host only.
    #[serde(default)]
    pub host: Vec<String>,
    /// Patterns for files in containers only.
    #[serde(default)]
    pub containers: Vec<String>,
    /// Patterns for unix sockets.
    #[serde(default)]
    pub sockets: Vec<String>,
    /// `ADDRESS:PORT`.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// Names of variables that hold secrets.
    #[serde(default)]
    pub environment: Vec<String>,
    /// Where it is usually taken: `HOST:PORT`, where `*` stands for anything. For people.
    #[serde(default)]
    pub destinations: Vec<String>,
    /// Whether a node that waits for its bundle leaves it readable.
    #[serde(default)]
    without_bundle: WithoutBundle,
}

/// What a credential is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A pair of an id and a secret.
    AccessKey,
    /// Whoever bears it may.
    Token,
    /// Such a token that says who it is for, and until when.
    Jwt,
    /// A password, with or without a user's name.
    Password,
    /// What passwords are checked against.
    PasswordHash,
    /// The private half of a key pair.
    PrivateKey,
    /// A Kubernetes client's configuration, with certificate, token or both.
    Kubeconfig,
    /// Many secrets in one file, often encrypted.
    Keyring,
    /// Sessions of a browser.
    Cookies,
    /// Whatever somebody put there.
    Opaque,
    /// Settings with secrets among them.
    Mixed,
    /// A unix socket behind which secrets are, or that acts with them.
    Socket,
    /// A network address that hands secrets out.
    Endpoint,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum WithoutBundle {
    #[default]
    Deny,
    Permit,
}

/// All entries, in the order of the file.
#[must_use]
pub fn catalogue() -> &'static [Entry] {
    &ENTRIES
}

/// The entries that `id` means: the one with that id, and all whose ids go on from it after a dot.
pub fn entries(id: &str) -> impl Iterator<Item = &'static Entry> + use<'_> {
    let below = move |entry: &&Entry| {
        let rest = entry.id.strip_prefix(id);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    catalogue().iter().filter(below)
}

impl Entry {
    /// Where it lies on a host with these homes, see [`home_patterns`].
    #[must_use]
    pub fn sources(&self, homes: &[String]) -> Vec<Source> {
        // What the catalogue has is right, as a test says; a home that cannot be named in a pattern is no home.
        let files = self.paths.iter().chain(&self.host);
        let files = files
            .flat_map(|pattern| at_homes(pattern, homes))
            .filter_map(|path| values::file(&path).ok());
        let sockets = self.sockets.iter();
        let sockets = sockets.filter_map(|path| {
            let one = values::socket(path);
            one.or_else(|_| values::file(path)).ok()
        });
        let endpoints = self.endpoints.iter();
        let endpoints = endpoints.filter_map(|text| values::endpoint(text).ok());
        let variables = self.environment.iter();
        let variables = variables.filter_map(|name| values::variable(name).ok());
        (files.chain(sockets))
            .chain(endpoints)
            .chain(variables)
            .collect()
    }

    /// Whether any of it is on the node itself, and not behind an address.
    #[must_use]
    pub fn is_local(&self) -> bool {
        let all = [&self.paths, &self.host, &self.sockets, &self.environment];
        all.into_iter().any(|list| !list.is_empty())
    }

    /// Whether nobody may read it on a node that has to have a bundle and has none.
    #[must_use]
    pub fn denied_without_bundle(&self) -> bool {
        self.without_bundle == WithoutBundle::Deny
    }
}

/// The pattern below each of the homes if it begins with `~`, and itself if not.
pub fn at_homes(pattern: &str, homes: &[String]) -> Vec<String> {
    match pattern.strip_prefix('~') {
        Some(below) => homes.iter().map(|home| format!("{home}{below}")).collect(),
        None => vec![pattern.to_owned()],
    }
}

/// The beginnings of patterns that cover these home directories: `/root` and `/home/*` in any case, so that a new user's
/// home is covered before it is there, and each of the others that is somebody's own.
#[must_use]
pub fn home_patterns(homes: &BTreeSet<PathBuf>) -> Vec<String> {
    let common = ["/root".to_owned(), "/home/*".to_owned()];
    let others = homes
        .iter()
        .filter(|home| home.parent() != Some(Path::new("/home")) && is_own(home))
        .filter_map(|home| home.to_str())
        .map(escaped)
        .filter(|pattern| values::path(pattern).is_ok());
    common.into_iter().chain(others).collect()
}

/// Whether this is a place of its own, and not one of the system's that daemons have for a home.
fn is_own(home: &Path) -> bool {
    const NOBODYS: [&str; 9] = [
        "/",
        "/root",
        "/home",
        "/bin",
        "/sbin",
        "/usr/bin",
        "/usr/sbin",
        "/usr/games",
        "/nonexistent",
    ];
    const NO_FILES: [&str; 3] = ["/dev", "/proc", "/sys"];
    !NOBODYS.iter().any(|place| home == Path::new(place))
        && !NO_FILES.iter().any(|place| home.starts_with(place))
}

/// The path as a pattern that matches it alone.
pub fn escaped(path: &str) -> String {
    let class = |c: char| match c {
        '*' | '?' | '[' | '{' | '}' => format!("[{c}]"),
        _ => c.to_string(),
    };
    path.chars().map(class).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_what_it_should_be() {
        let homes = home_patterns(&BTreeSet::new());
        let mut ids = BTreeSet::new();
        for entry in catalogue() {
            let id = &entry.id;
            assert!(ids.insert(id), "{id} is there twice");
            assert!(values::id(id).is_ok(), "{id}");
            assert!(!entry.provider.is_empty(), "{id}");
            for pattern in [&entry.paths, &entry.host, &entry.containers, &entry.sockets]
                .into_iter()
                .flatten()
            {
                assert!(!pattern.starts_with("/var/run/"), "{id}: {pattern}");
                assert!(!pattern.starts_with("/**"), "{id}: {pattern}");
                for path in at_homes(pattern, &homes) {
                    let source = values::file(&path);
                    assert!(source.is_ok(), "{id}: {path}: {source:?}");
                }
            }
            for endpoint in &entry.endpoints {
                assert!(values::endpoint(endpoint).is_ok(), "{id}: {endpoint}");
            }
            for name in &entry.environment {
                assert!(values::variable(name).is_ok(), "{id}: {name}");
            }
            for destination in &entry.destinations {
                let (host, port) = destination.rsplit_once(':').expect("HOST:PORT");
                assert!(!host.is_empty(), "{id}: {destination}");
                assert!(port.parse::<u16>().is_ok(), "{id}: {destination}");
            }
            let somewhere =
                entry.is_local() || !entry.endpoints.is_empty() || !entry.containers.is_empty();
            assert!(somewhere, "{id} is nowhere");
        }
    }

    #[test]
    fn no_place_is_in_two_entries() {
        let homes = home_patterns(&BTreeSet::new());
        let mut seen = std::collections::HashMap::new();
        for entry in catalogue() {
            for source in entry.sources(&homes) {
                let text = source.to_string();
                if let Some(first) = seen.insert(text.clone(), &entry.id) {
                    panic!("{text} is in {first} and {}", entry.id);
                }
            }
        }
    }

    #[test]
    fn ids_mean_what_is_below_them() {
        let ids = |id| entries(id).map(|it| it.id.as_str()).collect::<Vec<_>>();
        assert_eq!(
            ids("aws"),
            [
                "aws.shared-credentials",
                "aws.web-identity",
                "aws.container-endpoint"
            ]
        );
        assert_eq!(ids("aws.web-identity"), ["aws.web-identity"]);
        assert_eq!(
            ids("container-registry"),
            ["container-registry", "container-registry.kubelet"]
        );
        for none in ["", "aw", "aws.", "aws.web", "AWS", "."] {
            assert!(ids(none).is_empty(), "{none}");
        }
    }

    #[test]
    fn homes_are_covered_each_once() {
        let homes = |paths: &[&str]| {
            let paths = paths.iter().map(PathBuf::from).collect();
            home_patterns(&paths)
        };
        assert_eq!(homes(&[]), ["/root", "/home/*"]);
        assert_eq!(
            homes(&[
                "/root",
                "/home/ada",
                "/home/corp/eve",
                "/var/lib/postgresql",
                "/",
                "/usr/sbin",
                "/nonexistent",
                "/dev/shm",
                "relative",
                "/srv/../etc",
                "/srv/odd*[1]",
            ]),
            [
                "/root",
                "/home/*",
                "/home/corp/eve",
                "/srv/odd[*][[]1]",
                "/var/lib/postgresql",
            ]
        );
    }
}
