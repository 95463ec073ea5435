//! How far the verifier walks each program: a little change of one can make it many times as far, until a kernel
//! refuses it and before that makes every start slow.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};

use super::{Scene, cases};
use crate::harness::{Skipped, daemon};

cases![the_verifier_walks_no_further];

/// What was walked, by series of kernels, tier and program.
const RECORDED: &str = include_str!("verifier.json");

type ByProgram = BTreeMap<String, u64>;
type ByTier = BTreeMap<String, ByProgram>;

/// A program may grow by so much, and by a few more instructions if it is small.
const GROWTH: f64 = 1.25;
const FEW: u64 = 2_000;

fn the_verifier_walks_no_further(scene: &mut Scene) -> Result<()> {
    scene.off()?;
    let recorded: BTreeMap<String, ByTier> = serde_json::from_str(RECORDED)?;
    let series = series()?;
    let probed = daemon::enforcer_json(&["probe", "-o", "json"])?;
    let mut walked = ByTier::new();
    for found in probed.as_array().context("no list")? {
        if let Some(verified) = found.get("verified") {
            let tier = found["name"].as_str().context("no name")?.to_owned();
            walked.insert(tier, serde_json::from_value(verified.clone())?);
        }
    }
    if walked.is_empty() {
        bail!(Skipped(format!(
            "Linux {series} does not tell what its verifier walks"
        )));
    }
    let now = serde_json::to_string(&walked)?;
    // A series that is newer than those that are known is not to be worse than the last of them.
    let number = |series: &str| -> Option<(u32, u32)> {
        let (major, minor) = series.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    let known = recorded
        .iter()
        .filter(|(it, _)| number(it) <= number(&series))
        .max_by_key(|(it, _)| number(it));
    let (known, known_tiers) = known.context("no kernel as old as this one is recorded")?;
    let mut faults = Vec::new();
    for (tier, programs) in &walked {
        for (program, count) in programs {
            match known_tiers.get(tier).and_then(|it| it.get(program)) {
                Some(before) => {
                    let most = (*before as f64 * GROWTH) as u64 + FEW;
                    if *count > most {
                        faults.push(format!(
                            "{tier} {program} {count}, on {known} it was {before}"
                        ));
                    }
                }
                None => faults.push(format!(
                    "{tier} {program} {count}, not recorded for {known}"
                )),
            }
        }
    }
    ensure!(
        faults.is_empty(),
        "the verifier walks further ({}); if that is meant, `{series}` in verifier.json is to be {now}",
        faults.join("; ")
    );
    Ok(())
}

/// Of the kernel that runs.
fn series() -> Result<String> {
    let release = nix::sys::utsname::uname()?
        .release()
        .to_string_lossy()
        .into_owned();
    let mut numbers = release.split('.');
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => Ok(format!("{major}.{minor}")),
        _ => bail!("the kernel calls itself {release}"),
    }
}
