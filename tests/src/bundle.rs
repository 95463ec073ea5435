//! Writing bundles.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
};

/// A later one must have a higher version.
static VERSION: AtomicU64 = AtomicU64::new(1);

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
    /// Before the lists: `defaults`, `trusted`, `baseline`.
    front: String,
    credentials: String,
    workloads: String,
    entitlements: String,
}

impl Parts {
    /// With this instead of what stood before the lists.
    pub fn front(mut self, text: impl Into<String>) -> Self {
        self.front = text.into();
        self
    }

    /// A file under an id.
    pub fn file(self, id: &str, path: &str) -> Self {
        self.credential(&format!("id: {id}, sources: [{{file: \"{path}\"}}]"))
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
        for (name, items) in [
            ("credentials", &self.credentials),
            ("workloads", &self.workloads),
            ("entitlements", &self.entitlements),
        ] {
            if !items.is_empty() {
                text.push_str(name);
                text.push_str(":\n");
                text.push_str(items);
            }
        }
        text
    }
}

fn item(list: &mut String, fields: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(list, "  - {{{fields}}}");
}
