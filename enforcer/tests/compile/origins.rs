//! Ancestors and `interactive`: each workload matches whom it says, whatever else the bundle selects by.

use std::collections::BTreeSet;

use enforcer::compile::{CompileError, Facts, Numbering, Policy, compile};
use enforcer_common::facts::Task;
use enforcer_common::ids::{ExecutableKey, Uid};
use enforcer_common::origin::UNKNOWN;
use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;

use super::support::{bundle, node, plain, program, refused};

/// cgroups, and which of [`CGROUPS`] they match.
const PLACES: &[(&str, &[usize])] = &[
    ("/", &[]),
    ("/system.slice/x.service", &[1]),
    ("/a.slice", &[0]),
    ("/a.slice/x.service", &[0, 1]),
    ("/a.slice/x.service/sub/y.service", &[0, 1]),
    ("/system.slice/y.service", &[2]),
    (
        "/user.slice/user-34.slice/user@34.service/app.slice/x.service",
        &[3],
    ),
    (
        "/user.slice/user-34.slice/user@34.service/app.slice/x.service/x.service",
        &[3],
    ),
    (
        "/user.slice/user-34.slice/user@34.service/y.service/x.service",
        &[],
    ),
    (
        "/user.slice/user-35.slice/user@35.service/app.slice/x.service",
        &[],
    ),
    (
        "/system.slice/mine.service/user.slice/user-34.slice/user@34.service/x.service",
        &[],
    ),
];
const CGROUPS: &[&str] = &[
    "cgroup: /a.slice",
    "systemdUnit: x.service",
    "systemdUnit: y.service",
    "systemdUnit: {name: x.service, user: backup}",
];
const ANCESTORS: &[&str] = &[
    "/bin/curl",
    "/bin/layered",
    "/bin/restic",
    "/bin/four",
    "/bin/five",
];

/// What a workload asks for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Asks {
    executable: bool,
    user: bool,
    cgroup: Option<usize>,
    ancestor: Option<usize>,
    interactive: Option<bool>,
}

impl Asks {
    fn text(&self) -> String {
        let mut fields = Vec::new();
        if self.executable {
            fields.push("executable: {path: /bin/restic}".to_owned());
        }
        if self.user {
            fields.push("user: backup".to_owned());
        }
        fields.extend(self.cgroup.map(|it| CGROUPS[it].to_owned()));
        fields.extend(
            self.ancestor
                .map(|it| format!("ancestor: {{path: {}}}", ANCESTORS[it])),
        );
        fields.extend(self.interactive.map(|it| format!("interactive: {it}")));
        fields.join(", ")
    }

    fn is_identity(&self) -> bool {
        self.executable || self.cgroup.is_some() || self.ancestor.is_some()
    }

    fn matches(&self, who: &Who) -> bool {
        let known = who.origin.as_ref();
        (!self.executable || who.executable)
            && (!self.user || who.user)
            && self
                .cgroup
                .is_none_or(|it| PLACES[who.place].1.contains(&it))
            && self
                .ancestor
                .is_none_or(|it| known.is_some_and(|(of, _)| of.contains(&it)))
            && self
                .interactive
                .is_none_or(|it| known.is_some_and(|(_, is)| *is == it))
    }
}

/// A task; where it comes from, if that is known.
#[derive(Clone, Debug)]
struct Who {
    executable: bool,
    user: bool,
    place: usize,
    origin: Option<(BTreeSet<usize>, bool)>,
}

fn asks() -> impl Strategy<Value = Asks> {
    let flags = (prop::bool::weighted(0.3), prop::bool::weighted(0.3));
    let which = (
        option::of(0..CGROUPS.len()),
        option::of(0..ANCESTORS.len()),
        option::of(any::<bool>()),
    );
    (flags, which)
        .prop_map(
            |((executable, user), (cgroup, ancestor, interactive))| Asks {
                executable,
                user,
                cgroup,
                ancestor,
                interactive,
            },
        )
        .prop_filter("no identity", Asks::is_identity)
}

fn who() -> impl Strategy<Value = Who> {
    let origin = (btree_set(0..ANCESTORS.len(), 0..=3), any::<bool>());
    let flags = (any::<bool>(), any::<bool>());
    (flags, 0..PLACES.len(), option::weighted(0.9, origin)).prop_map(
        |((executable, user), place, origin)| Who {
            executable,
            user,
            place,
            origin,
        },
    )
}

fn facts() -> Facts {
    let mut facts = node();
    for (path, ino) in [("/bin/four", 14), ("/bin/five", 15)] {
        facts.executables.insert(plain(path), vec![program(ino)]);
    }
    facts
}

fn policy(all: &BTreeSet<Asks>, numbering: &mut Numbering) -> Result<Policy, CompileError> {
    let mut text = String::from("credentials: [{id: key, sources: [{file: /key}]}]\nworkloads:\n");
    for (number, asks) in all.iter().enumerate() {
        text += &format!("  - {{id: w{number}, match: {{{}}}}}\n", asks.text());
    }
    compile(&bundle(&text), &facts(), numbering, &[])
}

/// As the kernel puts it together.
fn task(policy: &Policy, who: &Who) -> Task {
    let origin = who
        .origin
        .as_ref()
        .map_or(UNKNOWN, |(ancestors, interactive)| {
            let paths: Vec<_> = ancestors.iter().map(|it| ANCESTORS[*it].into()).collect();
            policy.origin(&paths, *interactive)
        });
    let identity = policy.identity_of(PLACES[who.place].0);
    Task {
        executable: if who.executable {
            program(1)
        } else {
            ExecutableKey::default()
        },
        uid: Uid(if who.user { 34 } else { 35 }),
        identity: policy.with_origin(identity, origin),
        ..Task::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn each_workload_matches_whom_it_says(
        all in btree_set(asks(), 1..12),
        tasks in vec(who(), 30),
    ) {
        let policy = policy(&all, &mut Numbering::default()).expect("compiles");
        for who in tasks {
            let expected: BTreeSet<String> = all
                .iter()
                .enumerate()
                .filter(|(_, asks)| asks.matches(&who))
                .map(|(number, _)| format!("w{number}"))
                .collect();
            let task = task(&policy, &who);
            let found: BTreeSet<String> =
                policy.workloads_of(&task).into_iter().map(str::to_owned).collect();
            prop_assert_eq!(found, expected, "{:?} of {:?}", who, all.iter().map(Asks::text).collect::<Vec<_>>());
        }
    }

    /// Facts that were gathered just before a swap and are judged just after it entitle nobody whom they should not.
    #[test]
    fn what_a_task_was_under_the_bundle_before(
        before in btree_set(asks(), 1..5),
        after in btree_set(asks(), 1..5),
        tasks in vec(who(), 30),
    ) {
        let mut numbering = Numbering::default();
        let [before, now] = [&before, &after].map(|all| policy(all, &mut numbering).expect("compiles"));
        for who in tasks {
            let task = task(&before, &who);
            for (number, asks) in after.iter().enumerate() {
                let found = now.workloads_of(&task).contains(format!("w{number}").as_str());
                prop_assert!(!found || asks.matches(&who), "{:?} {:?}", asks, who);
            }
        }
    }
}

#[test]
fn more_ancestors_at_once_than_are_told() {
    let all: BTreeSet<Asks> = (0..ANCESTORS.len())
        .map(|it| Asks {
            executable: false,
            user: false,
            cgroup: None,
            ancestor: Some(it),
            interactive: None,
        })
        .collect();
    let policy = policy(&all, &mut Numbering::default()).expect("compiles");
    for (count, matched) in [(0, 0), (1, 1), (2, 2), (3, 3), (4, 0), (5, 0)] {
        let who = Who {
            executable: false,
            user: false,
            place: 0,
            origin: Some(((0..count).collect(), false)),
        };
        let task = task(&policy, &who);
        assert_eq!(policy.workloads_of(&task).len(), matched, "{count}");
    }
}

#[test]
fn more_ancestors_than_there_are_slots() {
    let item = |number| format!("{{id: w{number}, match: {{ancestor: {{path: /bin/a{number}}}}}}}");
    let items: Vec<_> = (0..32).map(item).collect();
    let refused = refused(&format!("workloads: [{}]", items.join(", ")));
    assert!(
        matches!(
            refused,
            CompileError::Capacity {
                table: "ancestors",
                got: 32,
                allowed: 31
            }
        ),
        "{refused}"
    );
}
