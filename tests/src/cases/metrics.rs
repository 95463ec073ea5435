//! What Prometheus and probes are answered.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::TcpStream,
};

use anyhow::{Context as _, Result, ensure};

use super::{Scene, cases, entitled, other, standard};
use crate::harness::{Allowed, Refused, wait_for};

cases![metrics_are_scraped];

const KEY: &str = "read /srv/t/key";
const ADDRESS: &str = "127.0.0.1:9478";
/// Whoever asks by these must be answered.
const ASKED: [&str; 2] = [
    include_str!("../../../deploy/prometheus/alerts.yaml"),
    include_str!("../../../deploy/grafana/enforcer.json"),
];

fn metrics_are_scraped(scene: &mut Scene) -> Result<()> {
    let options = [
        "--metrics",
        ADDRESS,
        "--sink",
        "a=file:///var/log/enforcer/a",
    ];
    scene.small(&standard::bundle()?, &options)?;
    ensure!(get("/livez")?.0 == 200, "the daemon does not live");
    let (status, why) = get("/readyz")?;
    ensure!(status == 200, "it is not ready: {status}, {why}");
    let (status, before) = get("/metrics")?;
    ensure!(status == 200, "/metrics came to {status}");
    scene.check(&other(), &[(KEY, Refused(""))])?;
    scene.check(&entitled(), &[(KEY, Allowed)])?;
    let sum = |page: &str, labels: &[&str]| -> f64 {
        let decisions = page.lines().filter(|line| {
            line.starts_with("enforcer_decisions_total{")
                && labels.iter().all(|label| line.contains(label))
        });
        decisions
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    };
    for labels in [
        &[r#"verdict="deny""#, r#"mode="enforce""#][..],
        &[r#"verdict="allow""#],
    ] {
        wait_for(&format!("one more of {labels:?}"), || {
            let (_, page) = get("/metrics").ok()?;
            (sum(&page, labels) > sum(&before, labels)).then_some(())
        })?;
    }
    let (_, page) = get("/metrics")?;
    let families: BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    for name in ASKED.iter().flat_map(|text| names(text)) {
        let family = name
            .strip_suffix("_total")
            .or_else(|| name.strip_suffix("_bucket"))
            .unwrap_or(name);
        ensure!(
            families.contains(family),
            "{name} is asked for, and there are only {families:?}"
        );
    }
    for full in ["enforcer_table_entries{", "enforcer_ring_bytes{"] {
        let capacity = full
            .replace("_entries", "_capacity")
            .replace("_bytes", "_capacity_bytes");
        let count = |name: &str| page.lines().filter(|line| line.starts_with(name)).count();
        ensure!(
            count(full) > 1 && count(full) == count(&capacity),
            "{} of {full} stand against {} of {capacity}",
            count(full),
            count(&capacity)
        );
    }
    scene.off()
}

/// The metrics of ours that a text names.
fn names(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices("enforcer_").map(|(at, _)| {
        let name = &text[at..];
        let end = name.find(|c: char| !c.is_ascii_lowercase() && c != '_');
        &name[..end.unwrap_or(name.len())]
    })
}

/// The status and the body of what is there.
fn get(path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(ADDRESS).context("nobody answers for metrics")?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {ADDRESS}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .with_context(|| format!("no answer, but {answer:?}"))?;
    let status = head.split(' ').nth(1).context("no status")?;
    Ok((status.parse()?, body.to_owned()))
}
