//! What the daemon's own work takes: reading, checking and compiling bundles, deciding, and writing records.

use std::{collections::BTreeMap, fmt::Write as _, hint::black_box, path::Path};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use enforcer::{
    bundle::{Executable, parse},
    compile::{Clock, Facts, HostTables, Numbering, Policy, compile},
    shape::Shape,
};
use enforcer_common::{
    address::{Address, Destination, Protocol},
    decide,
    facts::Task,
    ids::{BootNs, CgroupId, ExecutableKey, Generation, InodeKey, Tgid},
    tables::Holder,
};
use enforcer_governance::{
    envelope::Envelope,
    keys::SigningKey,
    trust::{Role, TrustRoot},
};
use serde_json::Value;

/// How many entitlements a bundle has.
const SIZES: [usize; 3] = [10, 1_000, 100_000];
/// How many of them one workload has.
const EACH: usize = 10;
const PROGRAM: &str = "/usr/bin/w-0";

/// So many entitlements to half as many credentials, by workloads that are programs.
fn text(entitlements: usize) -> String {
    let mut text = String::from(
        "apiVersion: enforcer.dev/v1\nkind: Bundle\nmetadata: {issuer: bench, version: 1}\ncredentials:\n",
    );
    let credentials = entitlements / 2;
    for number in 0..credentials {
        let _ = writeln!(
            text,
            "- {{id: key-{number}, sources: [{{file: /keys/{number}}}]}}"
        );
    }
    text.push_str("workloads:\n");
    for number in 0..entitlements / EACH {
        let _ = writeln!(
            text,
            "- {{id: w-{number}, match: {{executable: {{path: /usr/bin/w-{number}}}}}}}"
        );
    }
    text.push_str("entitlements:\n");
    for number in 0..entitlements {
        let (workload, credential) = (number / EACH, number % credentials);
        let (high, low) = (number / 250 % 250, number % 250);
        let _ = writeln!(
            text,
            "- {{id: E-{number}, workload: w-{workload}, credential: key-{credential}, destinations: [{{cidr: 10.{high}.{low}.0/24, ports: [443]}}]}}"
        );
    }
    text
}

fn program() -> ExecutableKey {
    let inode = InodeKey {
        ino: 1,
        ..InodeKey::default()
    };
    ExecutableKey {
        inode,
        changed_ns: 7,
    }
}

/// A node that has the first workload's program.
fn node() -> Facts {
    let executable = Executable {
        path: PROGRAM.into(),
        sha256: None,
        fs_verity: None,
    };
    Facts {
        forwarding: true,
        executables: BTreeMap::from([(executable, vec![program()])]),
        contained: BTreeMap::new(),
        users: BTreeMap::new(),
        homes: Vec::new(),
        pods: None,
        containers: Default::default(),
        labels: Default::default(),
        hosts: BTreeMap::new(),
        clock: Clock {
            boot: BootNs(1_000_000_000_000),
            wall: jiff::Timestamp::UNIX_EPOCH,
        },
    }
}

fn parsed(text: String) -> enforcer::bundle::Bundle {
    parse(&[("bundle.yaml".into(), text)]).expect("the bundle is good")
}

fn compiled(entitlements: usize) -> Policy {
    let bundle = parsed(text(entitlements));
    compile(&bundle, &node(), &mut Numbering::default(), &[]).expect("the tables have room for it")
}

/// Reading a bundle, checking who signed it, and making tables of it.
fn bundles(criterion: &mut Criterion) {
    let key = SigningKey::from_seed([1; 32]);
    let root = TrustRoot::of_one_key("bench", key.public());
    let mut group = criterion.benchmark_group("bundle");
    group.sample_size(10);
    for entitlements in SIZES {
        let text = text(entitlements);
        let envelope = Envelope::sign(
            "text/plain",
            text.clone().into_bytes(),
            std::slice::from_ref(&key),
        );
        group.bench_function(BenchmarkId::new("parse", entitlements), |bencher| {
            bencher.iter_with_setup(|| text.clone(), parsed);
        });
        group.bench_function(BenchmarkId::new("verify", entitlements), |bencher| {
            bencher.iter(|| {
                root.verify(Role::Bundle, black_box(&envelope))
                    .expect("signed")
            });
        });
        let (bundle, node) = (parsed(text), node());
        group.bench_function(BenchmarkId::new("compile", entitlements), |bencher| {
            bencher.iter(|| compile(&bundle, &node, &mut Numbering::default(), &[]).expect("room"));
        });
    }
    group.finish();
}

/// A decision of the kernel's, over the same tables in this process.
fn decisions(criterion: &mut Criterion) {
    let now = BootNs(1_000_000_000_000);
    let task = Task {
        executable: program(),
        tgid: Tgid(100),
        start: BootNs(5),
        cgroup: CgroupId(9),
        instance: CgroupId(9),
        classified: 1,
        ..Task::default()
    };
    let to = |octets| {
        Destination::new(
            Address::from_v4(u32::from_ne_bytes(octets)),
            443,
            Protocol::TCP,
        )
    };
    let mut group = criterion.benchmark_group("decide");
    for entitlements in SIZES {
        let policy = compiled(entitlements);
        let credential = policy
            .credential_of(Path::new("/keys/0"))
            .expect("a credential of the bundle");
        let mut tables = HostTables::new(&policy, Generation(3));
        assert_eq!(decide::read(&tables, now, &task, credential).denied(), None);
        group.bench_function(BenchmarkId::new("read", entitlements), |bencher| {
            bencher.iter(|| decide::read(&tables, now, black_box(&task), credential));
        });
        let (within, elsewhere) = (to([10, 0, 0, 1]), to([192, 0, 2, 1]));
        tables.set_held(Holder::instance(task.instance), &[credential]);
        assert_eq!(decide::reach(&tables, now, &task, &within).denied(), None);
        assert!(
            decide::reach(&tables, now, &task, &elsewhere)
                .denied()
                .is_some()
        );
        for (name, to) in [("reach", within), ("reach, denied", elsewhere)] {
            group.bench_function(BenchmarkId::new(name, entitlements), |bencher| {
                bencher.iter(|| decide::reach(&tables, now, black_box(&task), &to));
            });
        }
    }
    group.finish();
}

/// A record in each shape.
fn records(criterion: &mut Criterion) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shapes/golden/records.jsonl");
    let text = std::fs::read_to_string(golden).expect("records");
    let records: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("a record"))
        .collect();
    let mut group = criterion.benchmark_group("encode");
    group.throughput(criterion::Throughput::Elements(records.len() as u64));
    for shape in [
        Shape::Native,
        Shape::Ocsf,
        Shape::Ecs,
        Shape::CloudEvents,
        Shape::Falco,
        Shape::Cef,
    ] {
        group.bench_function(format!("{shape:?}"), |bencher| {
            bencher.iter(|| records.iter().map(|it| shape.line(it).len()).sum::<usize>());
        });
    }
    group.finish();
}

criterion_group!(daemon, bundles, decisions, records);
criterion_main!(daemon);
