//! Writing bundles.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

/// A later one must have a higher version; 1 is for what is to be older than all.
static VERSION: AtomicU64 = AtomicU64::new(2);

/// Whether every bundle also has the entitlement of [`STEADY`].
static STEADY_IN_ALL: AtomicBool = AtomicBool::new(false);

/// A workload that is entitled whatever else a bundle says: `/opt/t/steady` to `/srv/t/steady-key` and to one
/// destination.
const STEADY: [(&str, &str); 3] = [
    (
        "credentials",
        "id: steady-key, sources: [{file: /srv/t/steady-key}]",
    ),
    (
        "workloads",
        "id: steady, match: {executable: {path: /opt/t/steady}}",
    ),
    (
        "entitlements",
        "id: E-steady, workload: steady, credential: steady-key, destinations: [{cidr: 10.20.0.2, ports: [9000]}]",
    ),
];

/// From now on every bundle has the entitlement of `/opt/t/steady`.
pub fn with_steady() {
    STEADY_IN_ALL.store(true, Ordering::Relaxed);
}

/// The first lines, with a version that no bundle had before.
pub fn head() -> (u64, String) {
    let version = VERSION.fetch_add(1, Ordering::Relaxed);
    let text = format!(
        "apiVersion: enforcer.dev/v1\nkind: Bundle\nmetadata: {{issuer: tests, version: {version}}}\n"
    );
    (version, text)
}

/// A bundle that only consists of credentials, workloads and entitlements, each given in YAML's flow style.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// Before the lists: `defaults`, `trusted`, `maintenance`, `baseline`.
    front: String,
    declassified: String,
    credentials: String,
    workloads: String,
    entitlements: String,
}

impl Parts {
    /// `/srv/t/key` as `key`, and an entitlement to it of `/opt/t/entitled`; `rest` as in [`Parts::entitlement`].
    pub fn of_key(rest: &str) -> Self {
        Self::default()
            .file("key", "/srv/t/key")
            .workload("app", "executable: {path: /opt/t/entitled}")
            .entitlement("E1", "app", "key", rest)
    }

    /// With this instead of what stood before the lists.
    pub fn front(mut self, text: impl Into<String>) -> Self {
        self.front = text.into();
        self
    }

    /// With this program as a maintenance tool.
    pub fn maintained_by(mut self, path: &str) -> Self {
        self.front += &format!("maintenance:\n  - match: {{executable: {{path: {path}}}}}\n");
        self
    }

    /// With an end of following.
    pub fn declassify(mut self, fields: &str) -> Self {
        item(&mut self.declassified, fields);
        self
    }

    /// A file under an id.
    pub fn file(self, id: &str, path: &str) -> Self {
        self.credential(&format!("id: {id}, sources: [{{file: \"{path}\"}}]"))
    }

    /// A file under an id, before all other credentials.
    pub fn file_first(mut self, id: &str, path: &str) -> Self {
        let others = std::mem::take(&mut self.credentials);
        self = self.file(id, path);
        self.credentials += &others;
        self
    }

    /// A credential.
    pub fn credential(mut self, fields: &str) -> Self {
        item(&mut self.credentials, fields);
        self
    }

    /// A workload.
    pub fn workload(mut self, id: &str, selectors: &str) -> Self {
        item(
            &mut self.workloads,
            &format!("id: {id}, match: {{{selectors}}}"),
        );
        self
    }

    /// An entitlement; `rest` has `destinations` and what else there is.
    pub fn entitlement(mut self, id: &str, workload: &str, credential: &str, rest: &str) -> Self {
        let fields = format!("id: {id}, workload: {workload}, credential: {credential}, {rest}");
        item(&mut self.entitlements, &fields);
        self
    }

    /// The text after the head.
    pub fn text(&self) -> String {
        let mut text = self.front.clone();
        text.push_str("declassify:\n");
        text.push_str(&self.declassified);
        // The tests hear of everything that their actors do, and are to hold nothing by that.
        if let Ok(program) = std::env::current_exe() {
            let fields = format!("match: {{executable: {{path: {}}}}}", program.display());
            item(&mut text, &fields);
        }
        let steady = STEADY_IN_ALL.load(Ordering::Relaxed);
        for ((name, fields), mut items) in STEADY.into_iter().zip([
            self.credentials.clone(),
            self.workloads.clone(),
            self.entitlements.clone(),
        ]) {
            if steady {
                item(&mut items, fields);
            }
            if !items.is_empty() {
                text.push_str(name);
                text.push_str(":\n");
                text.push_str(&items);
            }
        }
        text
    }
}

fn item(list: &mut String, fields: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(list, "  - {{{fields}}}");
}
