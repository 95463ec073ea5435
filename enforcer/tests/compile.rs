//! From a bundle to verdicts: the same decision the kernel takes, over the tables compiled for it.

#[path = "compile/containers.rs"]
mod containers;
#[path = "compile/destinations.rs"]
mod destinations;
#[path = "compile/origins.rs"]
mod origins;
#[path = "compile/paths.rs"]
mod paths;
#[path = "compile/placed.rs"]
mod placed;
#[path = "compile/serves.rs"]
mod serves;
#[path = "compile/support.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use enforcer::bundle::{OnExpiry, home_patterns, known, parse};
use enforcer::compile::{CompileError, Facts, Numbering, Reserved, changed, compile};
use enforcer_common::facts::Task;
use enforcer_common::ids::{BootNs, IdentityId};
use enforcer_common::tables::{self, Credential, SocketName, Subject};
use enforcer_common::verdict::{Action, Mode};

use support::{ask, bundle, check, compiled, credential, node, one, program, refused, word};

#[test]
fn every_selector_must_match() {
    let all = "executable: {path: /bin/restic}, systemdUnit: backup.service, user: backup";
    check(
        &one(all, "destinations: none"),
        &[
            ("1 /system.slice/backup.service 34 read key", "allow"),
            ("1 /system.slice/backup.service/sub 34 read key", "allow"),
            (
                "2 /system.slice/backup.service 34 read key",
                "wrong-executable",
            ),
            (
                "- /system.slice/backup.service 34 read key",
                "wrong-executable",
            ),
            (
                "1 /system.slice/backup.service 0 read key",
                "wrong-workload",
            ),
            (
                "1 /system.slice/other.service 34 read key",
                "wrong-workload",
            ),
            (
                "1 /system.slice/other.service/backup.service 34 read key",
                "wrong-workload",
            ),
            ("1 / 34 read key", "wrong-workload"),
        ],
    );
    check(
        &one("executable: {path: /bin/restic}", "destinations: none"),
        &[
            ("1 /anywhere 5 read key", "allow"),
            ("2 /anywhere 5 read key", "wrong-executable"),
        ],
    );
    check(
        &one("cgroup: /a, user: root", "destinations: none"),
        &[
            ("- /a 0 read key", "allow"),
            ("- /a/b 0 read key", "allow"),
            ("- /ab 0 read key", "wrong-workload"),
            ("- /a 1 read key", "wrong-workload"),
        ],
    );
}

#[test]
fn what_the_node_does_not_have_matches_nothing() {
    for path in ["/bin/absent", "/bin/empty", "/bin/zero"] {
        check(
            &one(
                &format!("executable: {{path: {path}}}"),
                "destinations: none",
            ),
            &[
                ("1 / 0 read key", "wrong-executable"),
                ("- / 0 read key", "wrong-executable"),
            ],
        );
    }
    check(
        &one("cgroup: /a, user: nobody-here", "destinations: none"),
        &[("1 /a 0 read key", "wrong-workload")],
    );
    check(
        "credentials: [{id: key, sources: [{file: /key}]}]",
        &[("1 / 0 read key", "no-entitlement")],
    );
}

#[test]
fn a_program_may_have_several_keys() {
    check(
        &one("executable: {path: /bin/layered}", "destinations: none"),
        &[
            ("3 / 0 read key", "allow"),
            ("4 / 0 read key", "allow"),
            ("5 / 0 read key", "wrong-executable"),
        ],
    );
}

#[test]
fn nested_cgroups_mean_what_all_above_them_mean() {
    let body =
        "credentials: [{id: outer, sources: [{file: /1}]}, {id: inner, sources: [{file: /2}]},
  {id: unit, sources: [{file: /3}]}, {id: both, sources: [{file: /4}]}]
workloads:
  - {id: outer, match: {cgroup: /system.slice}}
  - {id: inner, match: {cgroup: /system.slice/a.service/sub}}
  - {id: unit, match: {systemdUnit: a.service}}
  - {id: both, match: {cgroup: /system.slice, systemdUnit: a.service}}
entitlements:
  - {id: E1, workload: outer, credential: outer, destinations: none}
  - {id: E2, workload: inner, credential: inner, destinations: none}
  - {id: E3, workload: unit, credential: unit, destinations: none}
  - {id: E4, workload: both, credential: both, destinations: none}";
    check(
        body,
        &[
            ("- /system.slice/x 0 read outer", "allow"),
            ("- /system.slice/x 0 read unit", "wrong-workload"),
            ("- /system.slice/a.service 0 read outer", "allow"),
            ("- /system.slice/a.service 0 read unit", "allow"),
            ("- /system.slice/a.service 0 read both", "allow"),
            ("- /system.slice/b.slice/a.service 0 read both", "allow"),
            ("- /system.slice/a.service 0 read inner", "wrong-workload"),
            ("- /system.slice/a.service/sub/x 0 read outer", "allow"),
            ("- /system.slice/a.service/sub/x 0 read inner", "allow"),
            ("- /system.slice/a.service/sub/x 0 read unit", "allow"),
            ("- /user.slice/a.service 0 read unit", "allow"),
            ("- /user.slice/a.service 0 read both", "wrong-workload"),
            ("- /a.service 0 read unit", "allow"),
            ("- /box/a.service 0 read unit", "wrong-workload"),
        ],
    );
    let policy = compiled(body);
    let task = Task {
        identity: policy.identity_of("/system.slice/a.service"),
        ..Task::default()
    };
    let workloads: Vec<_> = policy.workloads_of(&task).into_iter().collect();
    assert_eq!(workloads, ["both", "outer", "unit"]);
}

/// The kernel's own way of classifying a new cgroup agrees with [`Policy::identity_of`].
#[test]
fn the_names_give_what_the_whole_path_gives() {
    let policy = compiled(
        "workloads:
  - {id: a, match: {cgroup: /system.slice}}
  - {id: b, match: {cgroup: /system.slice/a.service/sub}}
  - {id: c, match: {systemdUnit: a.service}}
  - {id: d, match: {systemdUnit: user@1000.service}}
  - {id: e, match: {systemdUnit: x-y.slice}}",
    );
    let name = |text: &str| {
        let found = policy.cgroup_names.iter().find(|(key, _)| {
            key.0.starts_with(text.as_bytes()) && key.0[text.len()..].iter().all(|b| *b == 0)
        });
        found.map(|(_, id)| *id)
    };
    for path in [
        "/system.slice",
        "/system.slice/b.service",
        "/system.slice/a.service",
        "/system.slice/a.service/other",
        "/system.slice/a.service/sub/deeper",
        "/a.service",
        "/other.slice/a.service/x",
        "/x.slice/x-y.slice/b.service",
        "/user.slice/user-1000.slice/user@1000.service/app.slice",
        "/box/a.service",
    ] {
        let mut identity = IdentityId(0);
        let mut below_slices = true;
        for (end, _) in path.match_indices('/').skip(1).chain([(path.len(), "")]) {
            let own = path[..end].rsplit('/').next().expect("a name");
            let unit = name(own).filter(|_| below_slices);
            identity = name(&path[..end]).or(unit).unwrap_or(identity);
            below_slices &= own.ends_with(".slice");
        }
        assert_eq!(policy.identity_of(path), identity, "{path}");
    }
}

#[test]
fn trusted_workloads_pass() {
    let body = "trusted: [{match: {executable: {path: /bin/curl}, systemdUnit: k.service}}]
credentials: [{id: key, sources: [{file: /key}]}]";
    check(
        body,
        &[
            ("2 /system.slice/k.service 0 read key", "trusted"),
            ("2 / 0 read key", "no-entitlement"),
            ("1 /system.slice/k.service 0 read key", "no-entitlement"),
            (
                "2 /system.slice/k.service 0 reach tcp 192.0.2.1:1 while key",
                "pass",
            ),
        ],
    );
}

#[test]
fn what_is_declassified_is_known_and_not_governed() {
    let declassify =
        "declassify: [{match: {executable: {path: /bin/curl}}}, {file: /app.log}, {file: /key}]\n";
    let follow = "credentials: [{id: key, follow: true, sources: [{file: /key}]}]";
    let policy = compiled(&format!("{declassify}{follow}"));
    let governed = |path: &str| {
        let id = policy.credential_of(path.as_ref())?;
        Some(policy.credentials.contains_key(&id))
    };
    assert_ne!(policy.bundle.flags & tables::Bundle::FOLLOWS, 0);
    assert_eq!(governed("/app.log"), Some(false));
    // A credential stays one.
    assert_eq!(governed("/key"), Some(true));
    assert_eq!(governed("/other.log"), None);
    let standings: Vec<u32> = policy.subjects.values().map(|it| it.standing).collect();
    assert_eq!(standings, [Subject::DECLASSIFIES]);
    // Without anything that is followed it is nothing.
    let policy = compiled(&format!("{declassify}{}", follow.replace("true", "false")));
    assert_eq!(policy.bundle.flags & tables::Bundle::FOLLOWS, 0);
    assert_eq!(policy.credential_of("/app.log".as_ref()), None);
}

#[test]
fn windows_are_judged_by_boot_time() {
    let window =
        "destinations: none, validFrom: 2026-11-22T00:00:10Z, validUntil: 2026-11-22T00:01:00Z";
    check(
        &one("cgroup: /a", window),
        &[
            ("- /a 0 read key @1009", "not-yet-valid"),
            ("- /a 0 read key @1010", "allow"),
            ("- /a 0 read key @1059", "allow"),
            ("- /a 0 read key @1060", "expired"),
        ],
    );
    let mut bundle = bundle(&one("cgroup: /a", "destinations: none"));
    bundle.metadata.expires_at = Some("2026-11-22T00:00:05Z".parse().expect("a time"));
    for (on_expiry, refuses) in [("Deny", true), ("Monitor", false)] {
        if on_expiry == "Monitor" {
            bundle.defaults.on_expiry = OnExpiry::Monitor;
        }
        let policy = compile(&bundle, &node(), &mut Numbering::default(), &[]).expect("compiles");
        assert_eq!(word(ask(&policy, "- /a 0 read key @1004")), "allow");
        let verdict = ask(&policy, "- /a 0 read key @1005");
        assert_eq!(
            (word(verdict), verdict.refuses()),
            ("bundle-expired", refuses)
        );
    }
}

#[test]
fn nothing_begins_or_ends_before_it_is_said_to() {
    let window =
        "destinations: none, validFrom: 2026-11-22T00:00:10Z, validUntil: 2026-11-22T00:01:00Z";
    let mut bundle = bundle(&one("cgroup: /a", window));
    bundle.metadata.expires_at = Some("2026-11-22T00:02:00Z".parse().expect("a time"));
    let policy = compile(&bundle, &node(), &mut Numbering::default(), &[]).expect("compiles");
    let at = |seconds: u64| BootNs(seconds * 1_000_000_000);
    for (now, fresh_until, steady_until) in [
        (at(1000), BootNs::NEVER, at(1010)),
        (at(1009), BootNs::NEVER, at(1010)),
        (at(1010), BootNs::NEVER, at(1060)),
        (at(1010), at(1030), at(1030)),
        (at(1030), at(1030), at(1060)),
        (at(1060), BootNs::NEVER, at(1120)),
        (at(1120), BootNs::NEVER, BootNs::NEVER),
    ] {
        assert_eq!(
            policy.steady_until(now, fresh_until),
            steady_until,
            "{now:?}"
        );
    }
}

#[test]
fn mode_and_action_come_from_the_entitlement_or_the_bundle() {
    for (defaults, own, mode, action) in [
        ("mode: enforce", "", Mode::Enforce, Action::Block),
        (
            "mode: monitor, action: kill",
            "",
            Mode::Monitor,
            Action::Kill,
        ),
        (
            "mode: monitor",
            ", mode: enforce, action: kill",
            Mode::Enforce,
            Action::Kill,
        ),
    ] {
        let text = one(
            "executable: {path: /bin/restic}",
            &format!("destinations: none{own}"),
        );
        let policy = compiled(&format!("defaults: {{{defaults}}}\n{text}"));
        let verdict = ask(&policy, "1 / 0 reach tcp 192.0.2.1:1 while key");
        let info = &policy.entitlement_info[&verdict.entitlement()];
        assert_eq!((verdict.mode(), verdict.action()), (mode, action));
        assert_eq!((info.id.as_str(), info.workload.as_str()), ("E", "w"));
        // Another executable is not that workload: the entitlement that came near does not rule it.
        let verdict = ask(&policy, "2 / 0 read key");
        let of_bundle = (policy.bundle.mode, policy.bundle.action);
        assert_eq!((verdict.mode() as u8, verdict.action() as u8), of_bundle);
        assert_eq!(policy.entitlement_info[&verdict.entitlement()].id, "E");
    }
}

#[test]
fn canaries_are_enforced_even_where_all_else_is_monitored() {
    let reserved = [
        Reserved {
            id: "enforcer-read".into(),
            entitled: None,
        },
        Reserved {
            id: "enforcer-send".into(),
            entitled: Some(program(8)),
        },
    ];
    let bundle = bundle("defaults: {mode: monitor, action: kill}");
    let policy = compile(&bundle, &node(), &mut Numbering::default(), &reserved).expect("compiles");
    for (question, expected) in [
        ("8 / 0 read enforcer-read", "wrong-executable"),
        ("1 / 0 read enforcer-send", "wrong-executable"),
        ("8 / 0 read enforcer-send", "allow"),
        (
            "8 / 0 reach tcp 192.0.2.1:1 while enforcer-send",
            "outside-destination",
        ),
    ] {
        let verdict = ask(&policy, question);
        assert_eq!(word(verdict), expected, "{question}");
        assert_eq!(verdict.refuses(), expected != "allow", "{question}");
        assert_eq!(verdict.action(), Action::Block, "{question}");
    }
    let flags = policy.credentials[&credential(&policy, "enforcer-read")];
    assert!(flags.has(Credential::PROCESS_ONLY));
}

#[test]
fn too_many_entitlements_for_one_task_are_named() {
    let mut body = "credentials: [{id: key, sources: [{file: /key}]}]
workloads: [{id: outer, match: {cgroup: /a}}, {id: inner, match: {cgroup: /a/b}}]
entitlements:\n"
        .to_owned();
    for (id, workload) in [
        ("E1", "outer"),
        ("E2", "outer"),
        ("E3", "outer"),
        ("E4", "inner"),
    ] {
        body += &format!(
            "  - {{id: {id}, workload: {workload}, credential: key, destinations: none}}\n"
        );
    }
    compiled(&body);
    body += "  - {id: E5, workload: inner, credential: key, destinations: none}";
    let message = refused(&body).to_string();
    assert_eq!(
        message,
        "got 5 entitlements (E1, E2, E3, E4, E5) to credential key for tasks that are at once outer, inner, \
         expected at most 4; merge some of them, or select the workloads more narrowly"
    );
}

#[test]
fn many_programs_may_come_near() {
    let mut workloads = String::new();
    let mut entitlements = String::new();
    for n in 0..10 {
        workloads += &format!("  - {{id: w{n}, match: {{executable: {{path: /bin/p{n}}}}}}}\n");
        entitlements += &format!(
            "  - {{id: E{n}, workload: w{n}, credential: key, destinations: none, mode: {}}}\n",
            if n == 7 { "enforce" } else { "monitor" }
        );
    }
    let policy = compiled(&format!(
        "credentials: [{{id: key, sources: [{{file: /key}}]}}]\nworkloads:\n{workloads}entitlements:\n{entitlements}"
    ));
    let verdict = ask(&policy, "1 / 0 read key");
    assert_eq!(word(verdict), "wrong-executable");
    assert_eq!(policy.entitlement_info[&verdict.entitlement()].id, "E7");
}

#[test]
fn names_the_kernel_would_cut_off_are_refused() {
    let fits = format!("/{}", "a".repeat(189));
    compiled(&format!(
        "workloads: [{{id: w, match: {{cgroup: {fits}}}}}]"
    ));
    let error = refused(&format!(
        "workloads: [{{id: w, match: {{cgroup: {fits}a}}}}]"
    ));
    assert!(matches!(error, CompileError::NameTooLong { .. }), "{error}");
}

/// The table, how many entries a bundle would need of it, and how many it may have.
#[track_caller]
fn too_many(error: CompileError) -> (&'static str, usize, usize) {
    match error {
        CompileError::Capacity {
            table,
            got,
            allowed,
        } => (table, got, allowed),
        other => panic!("{other}"),
    }
}

#[test]
fn more_than_the_tables_hold_is_refused() {
    let endpoints: String = (0..1025)
        .map(|n| format!("{{endpoint: \"10.0.{}.{}:1\"}},", n / 256, n % 256))
        .collect();
    let error = refused(&format!(
        "credentials: [{{id: key, sources: [{endpoints}]}}]"
    ));
    assert_eq!(too_many(error), ("endpoints", 1025, 1024));
}

#[test]
fn half_of_the_tables_of_sockets_and_variables_is_for_the_next_bundle() {
    let many = |kind: &str, count: usize| -> String {
        let each = (0..count).map(|n| format!("{{{kind}{n}\"}},"));
        let sources: String = each.collect();
        format!("credentials: [{{id: key, sources: [{sources}]}}]")
    };
    for (kind, what, most) in [
        ("socket: \"@agent", "abstract sockets", 512),
        ("environment: \"TOKEN", "environment variables", 2048),
    ] {
        compiled(&many(kind, most));
        let error = refused(&many(kind, most + 1));
        assert_eq!(too_many(error), (what, most + 1, most));
    }
}

#[test]
fn sockets_and_variables_are_credentials() {
    let policy = compiled(
        "credentials:
  - {id: key, sources: [{file: /key}]}
  - {id: agent, sources: [{socket: /run/agent.sock}, {socket: \"@agent\"}]}
  - {id: token, exclusive: true, sources: [{environment: TOKEN}, {environment: API_TOKEN}]}",
    );
    let (agent, token) = (credential(&policy, "agent"), credential(&policy, "token"));
    assert_eq!(
        policy.credential_of(Path::new("/run/agent.sock")),
        Some(agent)
    );
    assert_eq!(policy.credential_of(Path::new("/run/agent.sock/x")), None);
    assert!(
        policy
            .watch
            .nodes
            .values()
            .any(|node| node.credential == agent)
    );
    let name = SocketName::new(b"agent").expect("short");
    assert_eq!(policy.sockets, BTreeMap::from([(name, agent)]));
    let variables = ["API_TOKEN", "TOKEN"].map(|name| (name.to_owned(), token));
    assert_eq!(policy.variables, BTreeMap::from(variables));

    assert_eq!(policy.bundle.environment, 1);
    let flags = |id| policy.credentials[&credential(&policy, id)];
    assert!(flags("token").has(Credential::ENVIRONMENT | Credential::EXCLUSIVE));
    assert!(!flags("agent").has(Credential::ENVIRONMENT));
    assert!(!flags("key").has(Credential::ENVIRONMENT));
    let sources = &policy.credential_info[&agent].sources;
    let told: Vec<_> = sources.iter().map(ToString::to_string).collect();
    assert_eq!(told, ["socket /run/agent.sock", "socket @agent"]);

    let without = compiled("credentials: [{id: key, sources: [{file: /key}]}]");
    assert_eq!(without.bundle.environment, 0);
    assert!(without.sockets.is_empty() && without.variables.is_empty());
}

#[test]
fn the_same_bundle_changes_nothing() {
    let sample = include_str!("../../enforcer-bundle/tests/bundles/good/sample.yaml");
    let parse = |text: &str| parse(&[("sample.yaml".into(), text.to_owned())]).expect("right");
    let mut numbering = Numbering::default();
    let mut next =
        |text: &str| compile(&parse(text), &node(), &mut numbering, &[]).expect("compiles");
    let (first, second) = (next(sample), next(sample));
    assert_eq!(first.grants, second.grants);
    assert_eq!(first.subjects, second.subjects);
    assert_eq!(first.scopes, second.scopes);
    assert_eq!(first.ports, second.ports);
    assert_eq!(first.watch, second.watch);

    // Another destination: nothing that is in use changes in place.
    let third = next(&sample.replace("10.20.0.0/16", "10.30.0.0/16"));
    assert!(third.grants != first.grants && third.scopes != first.scopes);
    for (key, value) in changed(Some(&first.grants), &third.grants) {
        assert!(!first.grants.contains_key(key), "{key:?}: {value:?}");
    }
    for (key, value) in changed(Some(&first.scopes), &third.scopes) {
        assert!(!first.scopes.contains_key(key), "{key:?}: {value:?}");
    }
    assert_eq!(first.credentials, third.credentials);
    assert_eq!(first.watch, third.watch);
}

/// A revocation changes the tables in place: into what a bundle without the entitlement would have made of them.
#[test]
fn what_is_taken_back_is_as_if_it_were_compiled() {
    let body = "
credentials: [{id: key, sources: [{file: /key}]}, {id: other, sources: [{file: /other}]}]
workloads:
- {id: backup, match: {executable: {path: /bin/restic}}}
- {id: curl, match: {executable: {path: /bin/curl}}}
- {id: service, match: {systemdUnit: backup.service}}
entitlements:
- {id: a, workload: backup, credential: key, destinations: none, action: kill}
- {id: b, workload: service, credential: key, destinations: none}
- {id: c, workload: curl, credential: key, destinations: none}
- {id: d, workload: service, credential: other, destinations: [{cidr: 192.0.2.0/24, ports: [443]}]}";
    let whole = bundle(body);
    let count = whole.entitlements.len();
    let numbering = Numbering::default;
    let policy = compile(&whole, &node(), &mut numbering(), &[]).expect("compiles");
    for chosen in 1..1_u32 << count {
        let is_chosen = |at: usize| chosen >> at & 1 == 1;
        let mut without = whole.clone();
        for (at, entitlement) in without.entitlements.iter_mut().enumerate() {
            entitlement.revoked = is_chosen(at);
        }
        let ids = (whole.entitlements.iter().enumerate())
            .filter(|(at, _)| is_chosen(*at))
            .map(|(_, it)| it.id.as_str())
            .collect();
        let mut grants = policy.grants.clone();
        grants.extend(policy.taken_back(&ids));
        let compiled = compile(&without, &node(), &mut numbering(), &[]).expect("compiles");
        assert_eq!(grants, compiled.grants, "{ids:?}");
        assert_ne!(grants, policy.grants, "{ids:?}");
        assert_eq!(compiled.subjects, policy.subjects, "{ids:?}");
    }
}

/// What was changed in place keeps its number to itself.
#[test]
fn what_was_taken_back_in_place_is_numbered_anew() {
    let body = one("executable: {path: /bin/restic}", "destinations: none");
    let mut numbering = Numbering::default();
    let mut again = || compile(&bundle(&body), &node(), &mut numbering, &[]).expect("compiles");
    let (first, second) = (again(), again());
    assert_eq!(first.grants, second.grants);
    let subjects = first.grants.keys().map(|key| key.subject()).collect();
    numbering.forget_subjects(&subjects);
    let third = compile(&bundle(&body), &node(), &mut numbering, &[]).expect("compiles");
    assert!(
        third
            .grants
            .keys()
            .all(|key| !subjects.contains(&key.subject()))
    );
}

#[test]
fn the_known_locations_are_a_bundle_that_fits() {
    let homes = BTreeSet::from(["/var/lib/postgresql".into()]);
    let bundle = known(&home_patterns(&homes));
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
        ("/var/lib/postgresql/.pgpass", true),
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
