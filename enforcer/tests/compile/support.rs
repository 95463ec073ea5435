//! A node, a bundle, and what is asked of both.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use enforcer::bundle::{Bundle, Executable, home_patterns, parse};
use enforcer::compile::{Clock, CompileError, Facts, HostTables, Numbering, Policy, compile};
use enforcer_common::address::{Address, Destination, Protocol};
use enforcer_common::decide;
use enforcer_common::facts::Task;
use enforcer_common::ids::{
    BootNs, CgroupId, CredentialId, ExecutableKey, Generation, InodeKey, Tgid, Uid,
};
use enforcer_common::tables::Holder;
use enforcer_common::verdict::Verdict;

pub const BOOT_SECONDS: u64 = 1000;
/// The moment of [`BOOT_SECONDS`].
pub const WALL: &str = "2026-11-22T00:00:00Z";

pub fn program(ino: u64) -> ExecutableKey {
    let inode = InodeKey {
        ino,
        ..InodeKey::default()
    };
    ExecutableKey {
        inode,
        changed_ns: 7,
    }
}

/// The program at this path, whatever its content.
pub fn plain(path: &str) -> Executable {
    Executable {
        path: path.into(),
        sha256: None,
        fs_verity: None,
    }
}

/// A node with some programs, users and names.
pub fn node() -> Facts {
    let executable = |path: &str, keys: &[u64]| {
        let keys = keys.iter().map(|ino| program(*ino)).collect();
        (plain(path), keys)
    };
    let ip = |text: &str| text.parse().expect("an address");
    Facts {
        forwarding: true,
        executables: BTreeMap::from([
            executable("/bin/restic", &[1]),
            executable("/bin/curl", &[2]),
            executable("/bin/layered", &[3, 4]),
            executable("/bin/empty", &[]),
            // As if something had gone wrong when it was captured.
            (plain("/bin/zero"), vec![ExecutableKey::default()]),
        ]),
        contained: BTreeMap::new(),
        users: BTreeMap::from([("backup".to_owned(), Uid(34)), ("root".to_owned(), Uid(0))]),
        homes: home_patterns(&BTreeSet::from(["/srv/people/eve".into()])),
        pods: None,
        containers: Default::default(),
        labels: Default::default(),
        hosts: BTreeMap::from([(
            "api.example.com".to_owned(),
            vec![ip("192.0.2.7"), ip("2001:db8::7")],
        )]),
        clock: Clock {
            boot: BootNs(BOOT_SECONDS * 1_000_000_000),
            wall: WALL.parse().expect("a time"),
        },
    }
}

pub fn bundle(body: &str) -> Bundle {
    let text = format!(
        "apiVersion: enforcer.dev/v1\nkind: Bundle\nmetadata: {{issuer: test, version: 1}}\n{body}"
    );
    match parse(&[("bundle.yaml".into(), text)]) {
        Ok(bundle) => bundle,
        Err(mistakes) => panic!("{mistakes}"),
    }
}

pub fn compiled(body: &str) -> Policy {
    compile(&bundle(body), &node(), &mut Numbering::default(), &[]).expect("compiles")
}

pub fn refused(body: &str) -> CompileError {
    compile(&bundle(body), &node(), &mut Numbering::default(), &[]).expect_err("is too much")
}

/// `key` for workload `w`, with the fields of the match and of the entitlement.
pub fn one(selectors: &str, entitlement: &str) -> String {
    format!(
        "credentials: [{{id: key, sources: [{{file: /key}}]}}]
workloads: [{{id: w, match: {{{selectors}}}}}]
entitlements: [{{id: E, workload: w, credential: key, {entitlement}}}]"
    )
}

/// A task: program (`-` for none), cgroup, user; then what it does: `read CREDENTIAL`, or `reach PROTOCOL ADDRESS
/// while CREDENTIAL ...`, or `answer tcp CLIENT:PORT while CREDENTIAL ...`, the port being its own. `@SECONDS` after boot at the end, if not at the moment of the clock.
pub fn ask(policy: &Policy, question: &str) -> Verdict {
    let mut words = question.split_whitespace();
    let mut next = || words.next().expect("another word");
    let executable = match next() {
        "-" => ExecutableKey::default(),
        ino => program(ino.parse().expect("an inode")),
    };
    let task = Task {
        executable,
        identity: policy.identity_of(next()),
        uid: Uid(next().parse().expect("a uid")),
        tgid: Tgid(100),
        start: BootNs(5),
        cgroup: CgroupId(9),
        instance: CgroupId(9),
        classified: 1,
    };
    let verb = next();
    let first = next();
    let mut rest: Vec<&str> = words.collect();
    let mut seconds = BOOT_SECONDS;
    if let Some(at) = rest.last().and_then(|word| word.strip_prefix('@')) {
        seconds = at.parse().expect("seconds");
        rest.pop();
    }
    let now = BootNs(seconds * 1_000_000_000);
    let mut tables = HostTables::new(policy, Generation(3));
    match verb {
        "read" => decide::read(&tables, now, &task, credential(policy, first)),
        "reach" | "answer" => {
            let held: Vec<_> = rest[2..].iter().map(|id| credential(policy, id)).collect();
            tables.set_held(Holder::instance(task.instance), &held);
            let mut to = destination(first, rest[0]);
            if verb == "answer" {
                to = Destination::answer(to.address, to.port(), to.protocol());
            }
            decide::reach(&tables, now, &task, &to)
        }
        _ => panic!("{question}"),
    }
}

/// Whether what each case stands for, as a question, is allowed; otherwise it lies outside the destinations.
pub fn check_each(body: &str, cases: &[(&str, bool)], question: impl Fn(&str) -> String) {
    let policy = compiled(body);
    for (case, allowed) in cases {
        let question = question(case);
        let expected = if *allowed {
            "allow"
        } else {
            "outside-destination"
        };
        assert_eq!(
            word(ask(&policy, &question)),
            expected,
            "{question}\n{body}"
        );
    }
}

pub fn credential(policy: &Policy, id: &str) -> CredentialId {
    let mut all = policy.credential_info.iter();
    *all.find(|(_, info)| info.id == id).expect("a credential").0
}

pub fn destination(protocol: &str, address: &str) -> Destination {
    let address: SocketAddr = address.parse().expect("an address and a port");
    let v6 = match address.ip() {
        std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        std::net::IpAddr::V6(v6) => v6,
    };
    let protocol = match protocol {
        "tcp" => Protocol::TCP,
        "udp" => Protocol::UDP,
        _ => Protocol::ICMP,
    };
    Destination::new(Address::from_octets(v6.octets()), address.port(), protocol)
}

/// What a verdict says in a word: `allow`, `trusted`, `pass`, or the reason.
pub fn word(verdict: Verdict) -> &'static str {
    match verdict.denied() {
        _ if !verdict.governed() => "pass",
        Some(reason) => reason.name(),
        None if verdict.trusted() => "trusted",
        None => "allow",
    }
}

pub fn check(body: &str, cases: &[(&str, &str)]) {
    let policy = compiled(body);
    for (question, expected) in cases {
        assert_eq!(
            word(ask(&policy, question)),
            *expected,
            "{question}\n{body}"
        );
    }
}
