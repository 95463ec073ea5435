//! Which paths become credentials.

use std::collections::HashSet;
use std::path::Path;

use enforcer::compile::{CompileError, Numbering, Policy, compile};
use enforcer_common::capacity::{NODES_PER_WATCH, PATTERNS_PER_NODE};
use enforcer_common::ids::{CredentialId, WatchNode};
use enforcer_common::watch::{ChildKey, NAME_BYTES, PatternKey, SUFFIX_BYTES};
use proptest::prelude::*;

use crate::support::{bundle, compiled, node, refused};

/// Follows the tree as the kernel does. The nodes a path leads to, once each, and the credential a file there has.
fn follow(policy: &Policy, path: &str) -> (Vec<WatchNode>, Option<CredentialId>) {
    let mut nodes = vec![policy.watch.root];
    let mut credential = None;
    for name in path.split('/').skip(1) {
        let name = name.as_bytes();
        let mut first = [0; NAME_BYTES];
        first[..name.len().min(NAME_BYTES)].copy_from_slice(&name[..name.len().min(NAME_BYTES)]);
        let mut last = [0; SUFFIX_BYTES];
        let tail = name.len().min(SUFFIX_BYTES);
        last[SUFFIX_BYTES - tail..].copy_from_slice(&name[name.len() - tail..]);
        let mut next = Vec::new();
        for node in nodes {
            let child = ChildKey::new(node, name);
            next.extend(child.and_then(|key| policy.watch.children.get(&key)));
            for slot in 0..PATTERNS_PER_NODE {
                let Some(pattern) = policy.watch.patterns.get(&PatternKey { node, slot }) else {
                    break;
                };
                if pattern.matches(name.len() as u32, &words(&first), &words(&last)) {
                    next.push(pattern.target);
                }
            }
        }
        let mut seen = HashSet::new();
        next.retain(|node| seen.insert(*node));
        credential = next
            .iter()
            .find_map(|node| policy.watch.nodes.get(node))
            .map(|node| node.credential);
        nodes = next;
    }
    (nodes, credential)
}

fn words<const B: usize, const W: usize>(bytes: &[u8; B]) -> [u64; W] {
    std::array::from_fn(|word| {
        let mut eight = [0; 8];
        eight.copy_from_slice(&bytes[8 * word..8 * word + 8]);
        u64::from_ne_bytes(eight)
    })
}

const PATHS: &str = "credentials:
  - {id: one, sources: [{file: /etc/one.key}, {file: \"/srv/*/id_*.pem\"}]}
  - {id: dir, sources: [{directory: /etc/dir}, {file: /etc/dir/own}]}
  - {id: deep, sources: [{file: \"/home/**/.ssh/id_[a-z]*\"}]}
  - {id: late, sources: [{file: /etc/dir/sub/late}, {file: \"/all/**\"}]}";

#[test]
fn paths_lead_to_their_credential() {
    let policy = compiled(PATHS);
    let name = |id: CredentialId| policy.credential_info[&id].id.as_str();
    for (path, expected, wider) in [
        ("/etc/one.key", Some("one"), None),
        ("/etc/one.keys", None, None),
        ("/srv/a/id_x.pem", Some("one"), None),
        ("/srv/a/b/id_x.pem", None, None),
        ("/etc/dir", None, None),
        ("/etc/dir/a", Some("dir"), None),
        ("/etc/dir/own", Some("dir"), None),
        ("/etc/dir/a/b/c", Some("dir"), None),
        // The first in the bundle's order.
        ("/etc/dir/sub/late", Some("dir"), None),
        ("/home/.ssh/id_rsa", Some("deep"), None),
        ("/home/a/.ssh/id_rsa", Some("deep"), None),
        ("/home/a/b/.ssh/id_rsa", Some("deep"), None),
        ("/home/a/b/.ssh/c/.ssh/id_rsa", Some("deep"), None),
        ("/home/a/.ssh/id_0", None, Some("deep")),
        ("/home/a/ssh/id_rsa", None, None),
        ("/all", None, None),
        ("/all/x", Some("late"), None),
        ("/all/x/y", Some("late"), None),
    ] {
        let exact = policy.credential_of(Path::new(path)).map(name);
        assert_eq!(exact, expected, "{path}");
        let kernel = follow(&policy, path).1.map(name);
        assert_eq!(kernel, expected.or(wider), "{path} in the kernel");
    }
}

#[test]
fn an_unchanged_path_keeps_its_nodes() {
    let mut numbering = Numbering::default();
    let mut next =
        |body: &str| compile(&bundle(body), &node(), &mut numbering, &[]).expect("compiles");
    let first = next(PATHS);
    let more = PATHS.replace(
        "{file: /etc/one.key}",
        "{file: /etc/two.key}, {file: /etc/one.key}, {file: \"/srv/*/a*\"}",
    );
    let second = next(&more);
    let (before, after) = (&first.watch, &second.watch);
    assert!(
        before
            .children
            .keys()
            .all(|key| after.children.contains_key(key))
    );
    for (key, pattern) in &before.patterns {
        assert_eq!(after.patterns[key], *pattern);
    }
}

fn sources(paths: &[&str]) -> String {
    let sources: String = paths
        .iter()
        .map(|path| format!("{{file: \"{path}\"}}, "))
        .collect();
    format!("credentials: [{{id: key, sources: [{sources}]}}]")
}

#[test]
fn patterns_beyond_what_the_kernel_follows_are_named() {
    compiled(&sources(&["/a/1*", "/a/2*", "/a/3*", "/a/4*"]));
    let error = refused(&sources(&[
        "/a/1*", "/a/2*", "/b/x*", "/a/3*", "/a/4*", "/a/5*",
    ]));
    assert_eq!(
        error.to_string(),
        "got 5 patterns that go on in the same directory (/a/1*, /a/2*, /a/3*, /a/4*, /a/5*), expected at most 4; \
         use one wider pattern, or `directory:`"
    );

    compiled(&sources(&["/a/x*/1", "/a/xy*/2", "/a/*z/3", "/a/xyz/4"]));
    let error = refused(&sources(&[
        "/a/x*/1", "/a/xy*/2", "/a/*z/3", "/a/xyz/4", "/a/?y*/5",
    ]));
    let CompileError::TooManyWays {
        got: 5,
        sources: named,
    } = &error
    else {
        panic!("{error}")
    };
    assert_eq!(named.0.len(), 5);

    let error = refused(&sources(&["/**/a/**/b/**/c/**/d/**/e"]));
    assert!(
        matches!(error, CompileError::TooManyStars { got: 5, .. }),
        "{error}"
    );

    let error = refused(&sources(&["/x/[a/b]"]));
    assert!(matches!(error, CompileError::Class { .. }), "{error}");
}

/// Paths and patterns over few letters, so that they meet often.
fn pattern() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        3 => "[ab]{1,2}",
        2 => Just("*".to_owned()),
        2 => Just("**".to_owned()),
        1 => Just("a*".to_owned()),
        1 => Just("*b".to_owned()),
        1 => Just("a?".to_owned()),
        1 => Just("[ab]*".to_owned()),
        1 => Just("[!a]".to_owned()),
    ];
    prop::collection::vec(part, 1..5).prop_map(|parts| format!("/{}", parts.join("/")))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// The kernel protects at least what the bundle means, and never has to remember too much.
    #[test]
    fn no_path_escapes_the_kernel(
        patterns in prop::collection::hash_set(pattern(), 1..5),
        paths in prop::collection::vec("(/[abc]{1,2}){1,5}", 20),
    ) {
        let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
        let bundle = bundle(&sources(&patterns));
        let Ok(policy) = compile(&bundle, &node(), &mut Numbering::default(), &[]) else {
            return Ok(());
        };
        for path in &paths {
            let (nodes, kernel) = follow(&policy, path);
            prop_assert!(nodes.len() <= NODES_PER_WATCH, "{path}");
            let exact = policy.credential_of(Path::new(path));
            prop_assert!(exact.is_none() || kernel.is_some(), "{patterns:?} {path}");
        }
    }
}
