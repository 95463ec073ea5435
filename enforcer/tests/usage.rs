//! What follows from a ledger: findings, a recommendation, a replay.

#[path = "usage/pods.rs"]
mod pods;

use std::collections::BTreeMap;

use enforcer::bundle::{Bundle, Parts, load_parts, parse};
use enforcer::replay::{Recorded, replay};
use enforcer::usage::findings::{Facts, Finding, Kind};
use enforcer::usage::{
    Destination, Ledger, OfPod, Place, Row, Seen, Thresholds, document, findings, recommend,
    summary,
};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::json;

const NOW: &str = "2026-11-26T12:00:00Z";

fn now() -> Timestamp {
    NOW.parse().expect("a time")
}

fn days_ago(days: i64) -> Timestamp {
    now() - SignedDuration::from_hours(24 * days)
}

const BODY: &str = r#"
credentials:
  - {id: key, owner: payments, sources: [{file: /srv/key}]}
workloads:
  - {id: app, match: {executable: {path: /opt/app}}}
  - {id: web, match: {systemdUnit: web.service}}
entitlements:
  - id: E1
    workload: app
    credential: key
    destinations: [{host: api.example.com, ports: [443]}, {cidr: 10.20.0.0/16, ports: [5432]}]
    validFrom: 2026-01-01T00:00:00Z
    approval: {approver: lead@example.com, ticket: GOV-1, reviewBy: 2027-01-15}
"#;

fn text(body: &str) -> String {
    format!(
        "apiVersion: enforcer.dev/v1\nkind: Bundle\nmetadata: {{issuer: test, version: 3}}\n{body}"
    )
}

fn bundle(body: &str) -> Bundle {
    match parse(&[("bundle.yaml".into(), text(body))]) {
        Ok(bundle) => bundle,
        Err(mistakes) => panic!("{mistakes}"),
    }
}

fn parts(body: &str) -> Parts {
    let file = tempfile::Builder::new()
        .suffix(".yaml")
        .tempfile()
        .expect("a file");
    std::fs::write(file.path(), text(body)).expect("can be written");
    load_parts(file.path()).expect("is good").1
}

/// A ledger that has seen everything for a year.
fn ledger() -> Ledger {
    let mut ledger = Ledger::new(days_ago(365));
    ledger.coverage.until = now();
    ledger
}

/// An allowed read by the entitled workload.
fn read() -> Row {
    Row {
        credential: "key".to_owned(),
        entitlement: Some("E1".to_owned()),
        workload: Some("app".to_owned()),
        executable: "/opt/app".to_owned(),
        uid: 1000,
        place: Place::Unit("app.service".to_owned()),
        verb: "read".to_owned(),
        destination: None,
        reason: None,
        monitored: false,
        trusted: false,
    }
}

fn reach(address: &str, port: u16, host: Option<&str>) -> Row {
    Row {
        verb: "reach".to_owned(),
        destination: Some(Destination {
            address: address.parse().expect("an address"),
            port,
            protocol: "tcp".to_owned(),
            host: host.map(str::to_owned),
        }),
        ..read()
    }
}

fn seen(days: i64) -> Seen {
    Seen::times(3, days_ago(days), days_ago(days))
}

/// Everything is used as it should be.
fn tidy() -> Ledger {
    let mut ledger = ledger();
    ledger.add(&read(), seen(1));
    ledger.add(&reach("192.0.2.7", 443, Some("api.example.com")), seen(1));
    ledger.add(&reach("10.20.3.4", 5432, None), seen(2));
    ledger
}

fn found_with(
    body: &str,
    ledger: &Ledger,
    changed: &[(&str, i64)],
    thresholds: &Thresholds,
) -> Vec<Finding> {
    let changed: BTreeMap<String, Timestamp> = changed
        .iter()
        .map(|(id, days)| ((*id).to_owned(), days_ago(*days)))
        .collect();
    let bundle = bundle(body);
    let found = findings(&Facts {
        bundle: &bundle,
        ledger,
        changed: &changed,
        now: now(),
        thresholds,
    });
    found.findings
}

fn found(body: &str, ledger: &Ledger) -> Vec<Finding> {
    found_with(body, ledger, &[], &Thresholds::default())
}

fn kinds(found: &[Finding]) -> Vec<Kind> {
    found.iter().map(|it| it.kind).collect()
}

#[test]
fn where_all_is_as_it_should_be_nothing_is_found() {
    assert_eq!(found(BODY, &tidy()), []);
}

#[test]
fn every_kind_has_its_references() {
    for kind in Kind::ALL {
        assert!(
            kind.owasp().starts_with("NHI") && kind.owasp().ends_with(":2025"),
            "{kind:?}"
        );
        let (function, number) = kind.nist().split_once('-').expect("a subcategory");
        assert!(function.contains('.') && number.len() == 2, "{kind:?}");
    }
}

#[test]
fn what_nobody_used_for_long_is_dormant() {
    let mut old = ledger();
    old.add(&read(), seen(40));
    let all = found(BODY, &old);
    assert_eq!(kinds(&all), [Kind::Dormant]);
    assert_eq!(all[0].entitlement.as_deref(), Some("E1"));
    assert!(all[0].evidence[0].contains("2026-10-17"), "{all:?}");
    // And never used at all.
    assert_eq!(kinds(&found(BODY, &ledger())), [Kind::Dormant]);
    // Granted a moment ago, on request, revoked or over: that is something else.
    for (field, other) in [
        ("2026-01-01T00:00:00Z", "2026-11-20T00:00:00Z"),
        (
            "workload: app\n",
            "workload: app\n    activation: on-request\n",
        ),
        (
            "workload: app\n",
            "workload: app\n    validUntil: 2026-11-01T00:00:00Z\n",
        ),
    ] {
        assert_eq!(found(&BODY.replace(field, other), &ledger()), [], "{other}");
    }
}

#[test]
fn what_would_not_have_been_seen_is_not_called_unused() {
    let mut gap = ledger();
    gap.missed(days_ago(10), days_ago(9), "no daemon");
    assert_eq!(found(BODY, &gap), []);
    let mut young = Ledger::new(days_ago(3));
    young.coverage.until = now();
    assert_eq!(found(BODY, &young), []);
    let mut full = ledger();
    full.coverage.unkept = 1;
    assert_eq!(found(BODY, &full), []);
    // A gap before that time changes nothing.
    let mut before = ledger();
    before.missed(days_ago(100), days_ago(90), "no daemon");
    assert_eq!(kinds(&found(BODY, &before)), [Kind::Dormant]);
    let bundle = bundle(BODY);
    let told = findings(&Facts {
        bundle: &bundle,
        ledger: &young,
        changed: &BTreeMap::new(),
        now: now(),
        thresholds: &Thresholds::default(),
    });
    let undecided = told.undecided.expect("it says so");
    assert!(
        undecided.contains("30 days") && undecided.contains("3 days"),
        "{undecided}"
    );
}

#[test]
fn the_smaller_entitlement_is_written_out_and_good() {
    let mut part = ledger();
    part.add(&read(), seen(1));
    part.add(&reach("192.0.2.7", 443, Some("api.example.com")), seen(1));
    // Long ago does not count.
    part.add(&reach("10.20.3.4", 5432, None), seen(60));
    let all = found(BODY, &part);
    assert_eq!(kinds(&all), [Kind::OverPrivileged]);
    let remedy = all[0].remedy.as_deref().expect("a smaller entitlement");
    assert!(
        remedy.contains("api.example.com") && !remedy.contains("10.20.0.0"),
        "{remedy}"
    );
    let indented: String = remedy.lines().map(|line| format!("    {line}\n")).collect();
    let head = BODY.split_once("  - id: E1").expect("the entitlement").0;
    let smaller = bundle(&format!("{head}  -\n{indented}"));
    let (was, is) = (&bundle(BODY).entitlements[0], &smaller.entitlements[0]);
    assert_eq!(is.destinations, was.destinations[..1]);
    assert_eq!(
        (&is.approval, is.valid_from),
        (&was.approval, was.valid_from)
    );
    assert_eq!(found(&format!("{head}  -\n{indented}"), &part), []);
}

#[test]
fn two_workloads_share() {
    let mut shared = tidy();
    let mut second = read();
    second.workload = Some("web".to_owned());
    second.entitlement = None;
    shared.add(&second, seen(1));
    let all = found(BODY, &shared);
    assert_eq!(kinds(&all), [Kind::Shared]);
    assert!(all[0].message.contains("app, web"), "{all:?}");
    // One of everybody's trusted does not.
    let mut trusted = tidy();
    second.trusted = true;
    trusted.add(&second, seen(1));
    assert_eq!(found(BODY, &trusted), []);
}

#[test]
fn the_rest_is_found_too() {
    let with = |row: Row| {
        let mut ledger = tidy();
        ledger.add(&row, seen(1));
        ledger
    };
    let denied = |reason: &str, monitored| Row {
        entitlement: None,
        workload: None,
        executable: "/usr/bin/cat".to_owned(),
        reason: Some(reason.to_owned()),
        monitored,
        ..read()
    };
    let tried = found(BODY, &with(denied("wrong-workload", false)));
    assert_eq!(kinds(&tried), [Kind::Unlisted]);
    assert!(tried[0].message.contains("was tried"), "{tried:?}");
    let did = found(BODY, &with(denied("no-entitlement", true)));
    assert!(did[0].message.contains("was used"), "{did:?}");
    // A destination outside is no unlisted workload.
    assert_eq!(found(BODY, &with(denied("outside-destination", false))), []);

    let by_hand = Row {
        place: Place::Session,
        ..read()
    };
    assert_eq!(kinds(&found(BODY, &with(by_hand))), [Kind::HumanUse]);

    let clear = reach("10.20.3.9", 80, None);
    assert_eq!(kinds(&found(BODY, &with(clear))), [Kind::Cleartext]);
    assert_eq!(found(BODY, &with(reach("127.0.0.1", 80, None))), []);
    let granted = BODY.replace("ports: [5432]", "ports: [5432, 21]");
    assert_eq!(kinds(&found(&granted, &tidy())), [Kind::Cleartext]);

    let late = found(BODY, &with(denied("outside-schedule", false)));
    assert_eq!(kinds(&late), [Kind::OutsideHours]);
    // Noon on a Wednesday.
    for (hours, expected) in [((7, 19), 0), ((13, 19), 1), ((22, 6), 1), ((22, 13), 0)] {
        let thresholds = Thresholds {
            hours: Some(hours),
            ..Thresholds::default()
        };
        let got = found_with(BODY, &tidy(), &[], &thresholds);
        assert_eq!(got.len(), expected, "{hours:?}: {got:?}");
    }

    let mut wide = tidy();
    for last in 1..=20 {
        wide.add(&reach(&format!("10.20.9.{last}"), 5432, None), seen(1));
    }
    assert_eq!(kinds(&found(BODY, &wide)), [Kind::FanOut]);

    let aged = found_with(BODY, &tidy(), &[("key", 91)], &Thresholds::default());
    assert_eq!(kinds(&aged), [Kind::LongLived]);
    let fresh = found_with(BODY, &tidy(), &[("key", 89)], &Thresholds::default());
    assert_eq!(fresh, []);

    let overdue = BODY.replace("2027-01-15", "2026-11-25");
    assert_eq!(kinds(&found(&overdue, &tidy())), [Kind::ReviewOverdue]);
    let today = BODY.replace("2027-01-15", "2026-11-26");
    assert_eq!(found(&today, &tidy()), []);

    let emergency = BODY.replace(
        "workload: app\n",
        "workload: app\n    activation: break-glass\n",
    );
    assert_eq!(kinds(&found(&emergency, &tidy())), [Kind::BreakGlass]);

    let orphan = BODY.replace("owner: payments, ", "");
    assert_eq!(kinds(&found(&orphan, &tidy())), [Kind::NoOwner]);
}

#[test]
fn a_summary_has_what_was_never_used_and_what_is_no_more() {
    let mut ledger = tidy();
    let mut gone = read();
    gone.entitlement = Some("E-gone".to_owned());
    ledger.add(&gone, seen(5));
    let mut refused = read();
    refused.reason = Some("expired".to_owned());
    ledger.add(&refused, seen(4));
    let body = BODY.replace(
        "  - id: E1",
        "  - {id: E0, workload: web, credential: key, destinations: none}\n  - id: E1",
    );
    let summary = summary(Some(&bundle(&body)), &ledger);
    let by_id: BTreeMap<_, _> = summary
        .entitlements
        .iter()
        .map(|it| (it.id.as_str(), it))
        .collect();
    assert_eq!(
        by_id.keys().copied().collect::<Vec<_>>(),
        ["E-gone", "E0", "E1"]
    );
    assert!(by_id["E0"].used.is_none() && by_id["E0"].in_force);
    assert!(!by_id["E-gone"].in_force);
    let e1 = by_id["E1"];
    assert_eq!(
        (e1.used.map(|it| it.count), e1.denied.map(|it| it.count)),
        (Some(9), Some(3))
    );
    assert_eq!(e1.destinations.len(), 2);
    assert_eq!(e1.approver.as_deref(), Some("lead@example.com"));
    assert_eq!(summary.credentials[0].used.map(|it| it.count), Some(12));
}

/// Three services and a shell, seen while nothing was entitled.
fn observed() -> Ledger {
    let mut ledger = ledger();
    let monitored = |mut row: Row, exe: &str, place: Place| {
        row.workload = None;
        row.entitlement = None;
        row.reason = Some("no-entitlement".to_owned());
        row.monitored = true;
        exe.clone_into(&mut row.executable);
        row.place = place;
        row
    };
    let unit = |name: &str| Place::Unit(name.to_owned());
    for row in [
        monitored(read(), "/usr/bin/billing", unit("billing.service")),
        monitored(
            reach("192.0.2.9", 443, None),
            "/usr/bin/billing",
            unit("billing.service"),
        ),
        monitored(
            reach("192.0.2.9", 8443, None),
            "/usr/bin/billing",
            unit("billing.service"),
        ),
        monitored(read(), "/usr/bin/report", Place::Nowhere),
        monitored(read(), "/usr/bin/vi", Place::Session),
        monitored(read(), "curl", unit("billing.service")),
    ] {
        ledger.add(&row, seen(1));
    }
    // Outside its destinations, of a workload that is listed.
    let mut more = reach("198.51.100.1", 443, None);
    more.reason = Some("outside-destination".to_owned());
    more.monitored = true;
    ledger.add(&more, seen(1));
    // Refused: somebody meant that.
    let mut refused = reach("203.0.113.1", 443, None);
    refused.reason = Some("outside-destination".to_owned());
    ledger.add(&refused, seen(1));
    ledger
}

#[test]
fn what_was_seen_becomes_a_good_bundle_and_no_more() {
    let recommended = recommend(&bundle(BODY), &observed());
    let new = parts(BODY).changed(&recommended.change);
    let metadata = json!({"issuer": "test", "version": 4});
    let text = document::yaml(&new.document(&metadata));
    let new = match parse(&[("recommended.yaml".into(), text.clone())]) {
        Ok(new) => new,
        Err(mistakes) => panic!("{mistakes}\n{text}"),
    };
    let workloads: Vec<_> = new.workloads.iter().map(|it| it.id.as_str()).collect();
    assert_eq!(workloads, ["app", "billing", "report-1000", "web"]);
    for (what, there) in [
        ("192.0.2.9", true),
        ("8443", true),
        ("198.51.100.1", true),
        ("203.0.113.1", false),
        ("/usr/bin/vi", false),
        ("curl", false),
    ] {
        assert_eq!(text.contains(what), there, "{what} in\n{text}");
    }
    assert_eq!(recommended.left_out.len(), 2, "{recommended:?}");
    // The entitlement that was there is as it was.
    assert!(new.entitlements.contains(&bundle(BODY).entitlements[0]));
}

fn event(kind: &str, exe: &str, verdict: &str, to: Option<(&str, u16)>) -> String {
    let mut event = json!({
        "time": "2026-11-20T10:00:00Z", "kind": kind, "verdict": verdict,
        "reason": if verdict == "deny" { Some("no-entitlement") } else { None },
        "mode": {"requested": "enforce", "effective": "enforce"},
        "credential": "key", "workload": null,
        "process": {"pid": 10, "uid": 0, "exe": exe, "cgroup": 0},
    });
    if let Some((address, port)) = to {
        event["destination"] =
            json!({"address": address, "port": port, "protocol": "tcp", "host": null});
    }
    event.to_string()
}

#[test]
fn a_replay_says_what_another_bundle_would() {
    let events = [
        event("read", "/opt/app", "allow", None),
        event("reach", "/opt/app", "allow", Some(("10.20.1.1", 5432))),
        event("reach", "/opt/app", "allow", Some(("10.30.1.1", 5432))),
        event("read", "/opt/other", "deny", None),
        event("bundle-applied", "/opt/app", "allow", None),
        "not an event".to_owned(),
    ];
    let records: Vec<Recorded> = events
        .iter()
        .filter_map(|line| Recorded::parse(line))
        .collect();
    let replayed = replay(&bundle(BODY), &records).expect("compiles");
    assert_eq!((replayed.uses, replayed.same), (4, 3), "{replayed:?}");
    let (different, count) = &replayed.different[0];
    assert_eq!(*count, 1);
    assert_eq!(different.destination.as_deref(), Some("10.30.1.1:5432"));
    assert_eq!(different.after.text(), "deny (outside-destination)");

    let monitoring = format!("defaults: {{mode: monitor}}\n{BODY}");
    let replayed = replay(&bundle(&monitoring), &records).expect("compiles");
    let after: Vec<String> = replayed
        .different
        .iter()
        .map(|(it, _)| it.after.text())
        .collect();
    assert_eq!(
        after,
        [
            "deny (outside-destination), only recorded",
            "deny (wrong-executable), only recorded"
        ]
    );
    // Before its time.
    let early = BODY.replace("2026-01-01T00:00:00Z", "2026-11-21T00:00:00Z");
    let replayed = replay(&bundle(&early), &records).expect("compiles");
    assert_eq!(replayed.same, 1, "{replayed:?}");
    // A credential that it does not have is nothing to it.
    let replayed = replay(&bundle("credentials: []\n"), &records).expect("compiles");
    assert_eq!((replayed.uses, replayed.same), (4, 3), "{replayed:?}");
}

/// Any row that names what the bundle has.
fn any_row() -> impl Strategy<Value = Row> {
    let place = prop_oneof![
        Just(Place::Unit("web.service".to_owned())),
        Just(Place::Nowhere),
        Just(Place::Session),
        Just(Place::Container),
        "[a-zA-Z0-9][a-zA-Z0-9_.-]{0,70}".prop_map(Place::Named),
        (
            "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?",
            "[a-z]{1,9}",
            any::<bool>()
        )
            .prop_map(|(namespace, container, labelled)| {
                let label = ("app".to_owned(), container.clone());
                Place::Pod(OfPod {
                    namespace,
                    service_account: labelled.then(|| container.clone()),
                    labels: labelled.then_some(label).into_iter().collect(),
                    container,
                })
            }),
    ];
    let host = prop_oneof![Just(None), Just(Some("api.example.com".to_owned()))];
    let to = (any::<std::net::IpAddr>(), any::<u16>(), host).prop_map(|(address, port, host)| {
        Destination {
            address,
            port,
            protocol: "tcp".to_owned(),
            host,
        }
    });
    (
        prop_oneof!["/[a-zA-Z. é]{0,70}", "[a-z]{1,5}"],
        any::<u32>().prop_filter("no uid", |uid| *uid != u32::MAX),
        place,
        proptest::option::of(to),
        proptest::option::of("(no-entitlement|outside-destination|expired)"),
        any::<bool>(),
        prop_oneof![
            Just(None),
            Just(Some("app".to_owned())),
            Just(Some("gone".to_owned()))
        ],
    )
        .prop_map(
            |(executable, uid, place, destination, reason, monitored, workload)| Row {
                executable,
                uid,
                place,
                verb: if destination.is_some() {
                    "reach"
                } else {
                    "read"
                }
                .to_owned(),
                destination,
                monitored: monitored && reason.is_some(),
                reason,
                workload,
                ..read()
            },
        )
}

proptest! {
    /// Whatever was seen: what is recommended is a good bundle, or says what it left out.
    #[test]
    fn recommendations_are_good_bundles(rows in proptest::collection::vec(any_row(), 0..40)) {
        let mut ledger = ledger();
        for row in &rows {
            ledger.add(row, seen(1));
        }
        let recommended = recommend(&bundle(BODY), &ledger);
        let new = parts(BODY).changed(&recommended.change);
        let good = new.bundle("recommended", &json!({"issuer": "test", "version": 4}));
        prop_assert!(good.is_ok(), "{}", good.expect_err("mistakes"));
    }

    /// Whatever was seen: nothing that was is called unused.
    #[test]
    fn what_was_used_is_not_called_dormant(rows in proptest::collection::vec(any_row(), 1..20)) {
        let mut ledger = ledger();
        for row in &rows {
            ledger.add(row, seen(1));
        }
        let used = rows.iter().any(|row| row.reason.is_none());
        let dormant = found(BODY, &ledger).iter().any(|it| it.kind == Kind::Dormant);
        prop_assert_eq!(dormant, !used);
    }
}
