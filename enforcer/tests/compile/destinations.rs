//! Where holders may go.

use enforcer_common::tables::Credential;

use crate::support::{ask, check, check_each, compiled, credential, one, word};

#[test]
fn destinations_are_unions_along_prefixes() {
    let to = "destinations: [{cidr: 10.0.0.0/8, ports: [443]}, {cidr: 10.1.0.0/16, ports: [\"8000-8080\"], protocol: udp},
      {cidr: 10.1.2.3/32, protocol: icmp}, {host: api.example.com, ports: [5432]}]";
    let expected = [
        ("tcp 10.9.9.9:443", true),
        ("tcp 10.1.2.3:443", true),
        ("tcp 10.1.2.3:444", false),
        ("udp 10.1.2.3:8000", true),
        ("udp 10.1.9.9:8080", true),
        ("udp 10.1.9.9:8081", false),
        ("udp 10.1.9.9:7999", false),
        ("udp 10.2.9.9:8000", false),
        ("tcp 10.1.9.9:8000", false),
        ("icmp 10.1.2.3:0", true),
        ("icmp 10.1.2.4:0", false),
        ("tcp 192.0.2.7:5432", true),
        ("tcp [2001:db8::7]:5432", true),
        ("tcp [2001:db8::8]:5432", false),
        ("tcp 11.0.0.1:443", false),
    ];
    check_reach(&one("cgroup: /a", to), &expected);
}

/// Whether a task in `/a` that holds `key` may reach each destination.
fn check_reach(body: &str, cases: &[(&str, bool)]) {
    check_each(body, cases, |to| format!("- /a 0 reach {to} while key"));
}

#[test]
fn ipv6_networks_cover_no_ipv4() {
    for (networks, v6, v4, other_v4) in [
        ("{cidr: \"::/0\"}", true, false, false),
        (
            "{cidr: \"::/64\"}, {cidr: \"2000::/3\"}",
            true,
            false,
            false,
        ),
        ("{cidr: \"::/0\"}, {cidr: 10.0.0.0/8}", true, true, false),
        ("{cidr: \"::/0\"}, {cidr: 0.0.0.0/0}", true, true, true),
        ("{cidr: 0.0.0.0/0}", false, true, true),
    ] {
        check_reach(
            &one("cgroup: /a", &format!("destinations: [{networks}]")),
            &[
                ("tcp [2001:db8::1]:1", v6),
                ("tcp 10.0.0.1:1", v4),
                ("tcp 192.0.2.1:1", other_v4),
            ],
        );
    }
    check_reach(
        &one(
            "cgroup: /a",
            "destinations: [{cidr: \"::/0\", ports: [1]}, {cidr: 10.0.0.0/8, ports: [2]}]",
        ),
        &[("tcp 10.0.0.1:2", true), ("tcp 10.0.0.1:1", false)],
    );
}

#[test]
fn each_entitlement_covers_its_own_destinations() {
    let body = "credentials: [{id: key, sources: [{file: /key}]}]
workloads: [{id: w, match: {cgroup: /a}}]
entitlements:
  - {id: OLD, workload: w, credential: key, destinations: [{cidr: 10.0.0.0/8}], validUntil: 2026-11-22T00:00:10Z}
  - {id: NEW, workload: w, credential: key, destinations: [{cidr: 10.1.0.0/16}], validFrom: 2026-11-22T00:00:10Z}";
    let policy = compiled(body);
    for (at, near, far) in [(1000, "OLD", Some("OLD")), (1020, "NEW", None)] {
        for (address, expected) in [("10.1.0.1:1", Some(near)), ("10.2.0.1:1", far)] {
            let question = format!("- /a 0 reach tcp {address} while key @{at}");
            let verdict = ask(&policy, &question);
            let by = &policy.entitlement_info[&verdict.entitlement()].id;
            match expected {
                Some(id) => assert_eq!((word(verdict), by.as_str()), ("allow", id), "{question}"),
                None => assert!(verdict.refuses(), "{question}"),
            }
        }
    }
}

#[test]
fn baseline_endpoints_and_exclusive_credentials() {
    let body = "baseline: {destinations: [{cidr: 10.96.0.10/32, ports: [53]}]}
credentials:
  - {id: key, exclusive: true, sources: [{file: /key}]}
  - {id: other, sources: [{file: /other}]}
  - {id: cloud, sources: [{endpoint: \"169.254.169.254:80\"}]}
workloads: [{id: w, match: {cgroup: /a}}]
entitlements:
  - {id: E1, workload: w, credential: key, destinations: none}
  - {id: E2, workload: w, credential: other, destinations: [{cidr: 10.0.0.0/8}]}
  - {id: E3, workload: w, credential: cloud}";
    check(
        body,
        &[
            ("- /a 0 reach udp 10.96.0.10:53 while key", "allow"),
            ("- /b 0 reach udp 10.96.0.10:53 while key", "allow"),
            (
                "- /a 0 reach udp 10.96.0.11:53 while key",
                "outside-destination",
            ),
            ("- /a 0 reach udp 10.96.0.11:53 while other", "allow"),
            (
                "- /a 0 reach udp 10.96.0.11:53 while other key",
                "outside-destination",
            ),
            ("- /a 0 reach tcp 169.254.169.254:80 while cloud", "allow"),
            (
                "- /a 0 reach tcp 169.254.169.254:81 while cloud",
                "outside-destination",
            ),
            ("- /a 0 reach tcp 127.0.0.1:81 while cloud", "local-peer"),
        ],
    );
    let policy = compiled(body);
    assert_eq!(policy.endpoints.len(), 1);
    assert!(policy.credentials[&credential(&policy, "key")].has(Credential::EXCLUSIVE));
}
