//! Whom holders may answer.

use enforcer_common::address::{Address, Destination, Protocol};
use enforcer_common::ids::{CgroupId, Generation};
use enforcer_common::tables::{Holder, Tables as _};
use enforcer_common::{decide, facts::Task, ids::BootNs};
use proptest::prelude::*;

use enforcer::compile::{HostTables, Policy};

use crate::support::{BOOT_SECONDS, ask, check, check_each, compiled, credential, one, word};

/// Whether a task in `/a` that holds `key` may answer each client, on the port it had connected to.
fn check_answers(body: &str, cases: &[(&str, bool)]) {
    check_each(body, cases, |client| {
        format!("- /a 0 answer tcp {client} while key")
    });
}

#[test]
fn clients_and_ports_that_are_served() {
    let serves =
        "destinations: none, serves: [{ports: [8080, 9000-9100], from: [10.0.0.0/8, \"fd00::/8\"]},
      {ports: [22], from: [192.0.2.1]}, {from: [192.0.2.2]}, {ports: [443]}]";
    check_answers(
        &one("cgroup: /a", serves),
        &[
            ("10.1.2.3:8080", true),
            ("10.1.2.3:9050", true),
            ("10.1.2.3:8081", false),
            ("10.1.2.3:22", false),
            ("[fd00::1]:9100", true),
            ("[fd00::1]:9101", false),
            ("[fe00::1]:8080", false),
            ("192.0.2.1:22", true),
            ("192.0.2.1:8080", false),
            ("192.0.2.2:1", true),
            ("203.0.113.9:443", true),
            ("[2001:db8::1]:443", true),
            ("203.0.113.9:444", false),
            ("[2001:db8::1]:444", false),
        ],
    );
    // TCP only.
    let policy = compiled(&one("cgroup: /a", serves));
    let verdict = ask(&policy, "- /a 0 answer udp 10.1.2.3:8080 while key");
    assert_eq!(word(verdict), "outside-destination");
}

#[test]
fn the_default_holds_where_nothing_is_said() {
    for (defaults, serves, everybody) in [
        ("", "", true),
        ("defaults: {inbound: permit}", "", true),
        ("defaults: {inbound: deny}", "", false),
        ("", ", serves: none", false),
        ("defaults: {inbound: deny}", ", serves: [{}]", true),
    ] {
        for destinations in ["none", "[{cidr: 10.0.0.0/8}]", "[{cidr: \"::/0\"}]"] {
            let entitlement = format!("destinations: {destinations}{serves}");
            let body = format!("{defaults}\n{}", one("cgroup: /a", &entitlement));
            check_answers(
                &body,
                &[
                    ("10.1.2.3:1", everybody),
                    ("192.0.2.1:65535", everybody),
                    ("[2001:db8::1]:80", everybody),
                ],
            );
        }
    }
}

#[test]
fn serving_is_part_of_its_entitlement() {
    let body = "credentials: [{id: key, sources: [{file: /key}]}]
workloads: [{id: w, match: {cgroup: /a}}]
baseline: {destinations: [{cidr: 0.0.0.0/0}]}
entitlements:
  - {id: OLD, workload: w, credential: key, destinations: none, validUntil: 2026-11-22T00:00:10Z,
     serves: [{from: [10.0.0.0/8]}]}
  - {id: NEW, workload: w, credential: key, destinations: none, validFrom: 2026-11-22T00:00:10Z,
     serves: [{from: [10.1.0.0/16]}]}";
    check(
        body,
        &[
            ("- /a 0 answer tcp 10.2.0.1:1 while key @1000", "allow"),
            ("- /a 0 answer tcp 10.1.0.1:1 while key @1020", "allow"),
            ("- /a 0 answer tcp 10.2.0.1:1 while key @1020", "expired"),
            // Others are not served by anybody's entitlement, and the baseline is for sending.
            ("- /b 0 answer tcp 10.1.0.1:1 while key", "wrong-workload"),
        ],
    );
}

#[test]
fn everybody_is_one_row() {
    let policy = compiled(&one("cgroup: /a", "destinations: none"));
    assert_eq!((policy.scopes.len(), policy.ports.len()), (1, 1));
}

/// What a holder of `key` in `/a` may do with a destination.
fn reach(policy: &Policy, to: &Destination) -> &'static str {
    let task = Task {
        identity: policy.identity_of("/a"),
        instance: CgroupId(9),
        classified: 1,
        ..Task::default()
    };
    let mut tables = HostTables::new(policy, Generation(3));
    let key = credential(policy, "key");
    tables.set_held(Holder::instance(task.instance), &[key]);
    assert!(tables.bundle().is_some());
    word(decide::reach(
        &tables,
        BootNs(BOOT_SECONDS * 1_000_000_000),
        &task,
        to,
    ))
}

/// An address near the edges of the networks in use.
fn address() -> impl Strategy<Value = Address> {
    let v4 = prop_oneof![
        Just([10, 0, 0, 0]),
        Just([10, 255, 255, 255]),
        any::<[u8; 4]>()
    ]
    .prop_map(|octets| Address::from_v4(u32::from_ne_bytes(octets)));
    let v6 = prop_oneof![
        any::<[u8; 16]>(),
        any::<u8>().prop_map(|last| {
            let mut octets = [0; 16];
            (octets[0], octets[15]) = (0xfd, last);
            octets
        })
    ]
    .prop_map(Address::from_octets);
    prop_oneof![v4, v6]
}

/// Items of `serves`, and items of `destinations`, as a bundle has them.
fn networks() -> impl Strategy<Value = Vec<&'static str>> {
    let network = prop::sample::select(vec![
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.0.0.0/9",
        "\"::/0\"",
        "\"fd00::/8\"",
        "192.0.2.1",
    ]);
    prop::collection::vec(network, 1..4)
}

fn ports() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["", ", ports: [443]", ", ports: [1-1023, 8080]"])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whom a workload serves says nothing of where it may send, nor the other way round.
    #[test]
    fn serving_and_sending_are_apart(
        from in networks(),
        from_ports in ports(),
        to in networks(),
        to_ports in ports(),
        at in address(),
        port in prop_oneof![Just(443), Just(8080), any::<u16>()],
        protocol in prop::sample::select(vec![Protocol::ICMP, Protocol::TCP, Protocol::UDP, Protocol(132)]),
    ) {
        let serves = format!("serves: [{{from: [{}]{from_ports}}}]", from.join(", "));
        let destinations: Vec<String> = to.iter().map(|it| format!("{{cidr: {it}{to_ports}}}")).collect();
        let destinations = format!("destinations: [{}]", destinations.join(", "));
        let policy = |entitlement: &str| compiled(&one("cgroup: /a", entitlement));
        let both = policy(&format!("{destinations}, {serves}"));

        let sent = Destination::new(at, port, protocol);
        prop_assert_eq!(reach(&both, &sent), reach(&policy(&format!("{destinations}, serves: none")), &sent));
        prop_assert_eq!(reach(&both, &sent), reach(&policy(&destinations), &sent));
        prop_assert_ne!(reach(&policy(&format!("destinations: none, {serves}")), &sent), "allow");

        let answer = Destination::answer(at, port, protocol);
        prop_assert_eq!(reach(&both, &answer), reach(&policy(&format!("destinations: none, {serves}")), &answer));
        prop_assert_ne!(reach(&policy(&format!("{destinations}, serves: none")), &answer), "allow");
    }
}
