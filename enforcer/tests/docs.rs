//! What the documents name must exist, and what they show must work.

use std::path::Path;

/// The workspace's root.
fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

#[test]
fn files_that_the_documents_name_exist() {
    let mut checked = 0;
    for document in [
        "README.md",
        "docs/architecture.md",
        "docs/bundle.md",
        "docs/credentials.md",
        "docs/deployment.md",
        "docs/evidence.md",
        "docs/governance.md",
        "docs/limits.md",
        "docs/sinks.md",
    ] {
        let text = std::fs::read_to_string(root().join(document)).expect(document);
        let quoted = text.split('`').skip(1).step_by(2);
        let linked = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
            .map(|link| if document == "README.md" { link } else { "" });
        for name in quoted.chain(linked) {
            let is_ours = [
                "enforcer",
                "deploy/",
                "docs/",
                "examples/",
                "tests/",
                "xtask/",
            ]
            .iter()
            .any(|start| name.starts_with(start));
            let is_file = [".rs", ".md", ".yaml", ".svg"]
                .iter()
                .any(|end| name.ends_with(end));
            if is_ours && is_file && !name.contains(' ') {
                checked += 1;
                assert!(root().join(name).exists(), "{document} names {name}");
            }
        }
    }
    assert!(checked > 15, "only {checked} names were found to check");
}

#[test]
fn the_sample_bundle_is_good() {
    let bundle = enforcer::bundle::load(&root().join("examples/bundle.yaml")).expect("good");
    assert_eq!(bundle.metadata.version, 42);
}
