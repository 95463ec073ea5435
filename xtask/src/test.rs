//! Every check, in stages; a failed stage does not hide what the later ones would say.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
    process::{Command, ExitCode},
    sync::Mutex,
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::{cmd, containers, fuzz, kernels::Wanted, paths, tally::Tally, toolchain, vm};

/// As many guests at once; each is mostly one thread's work.
const GUESTS: usize = 2;
/// What this kernel has, by trying: each tier is loaded, attached and taken off again.
const PROBE: &str = "enforcer probe";
/// The ways round the enforcer.
const ATTACKS: &str = "enforcer-tests attacks";
/// The same random decisions as on the host.
const REPLAY: &str = "enforcer-tests replay";
/// The cases.
const CASES: &str = "enforcer-tests guest";
/// The cases, with a tenth of what they do many times.
const CASES_IN_BRIEF: &str = "enforcer-tests guest --brief";
/// Only this: allowed, refused while the programs are attached, allowed again.
const FIRST_CASE: &str = "enforcer-tests guest --filter attach_and_detach";

/// Secrets through Python, git, ssh and docker.
const TOOLS: &str = "enforcer-tests tools";

/// Suites to run on a kernel (`None`: this machine's own) and tier.
type Row = (Option<&'static str>, &'static str, &'static [&'static str]);

/// What fits into an hour on two cores: each suite, each tier, old and new kernels; the longest first.
const USUAL: &[Row] = &[
    (Some("newest"), "lsm", &[REPLAY, CASES_IN_BRIEF]),
    (Some("6.1"), "lsm", &[PROBE, ATTACKS, REPLAY]),
    (Some("5.10"), "modify-return", &[ATTACKS]),
    (Some("6.12"), "fanotify", &[ATTACKS]),
    (Some("6.12"), "lsm", &[REPLAY, FIRST_CASE, TOOLS]),
    (Some("5.10"), "lsm", &[REPLAY, FIRST_CASE]),
    (Some("6.18"), "lsm", &[PROBE, REPLAY, FIRST_CASE]),
    (None, "fanotify", &[ATTACKS]),
];

/// All of it: every kernel that is promised has its row for the `lsm` tier.
const EVERYTHING: &[Row] = &[
    (Some("5.10"), "lsm", &[PROBE, ATTACKS, REPLAY, CASES, TOOLS]),
    (Some("6.1"), "lsm", &[PROBE, ATTACKS, REPLAY, CASES]),
    (Some("6.12"), "lsm", &[PROBE, ATTACKS, REPLAY, CASES, TOOLS]),
    (Some("6.18"), "lsm", &[PROBE, ATTACKS, REPLAY, CASES]),
    (Some("newest"), "lsm", &[PROBE, ATTACKS, REPLAY, CASES]),
    (Some("5.10"), "modify-return", &[ATTACKS]),
    (Some("6.12"), "modify-return", &[ATTACKS]),
    (Some("newest"), "modify-return", &[ATTACKS]),
    (Some("6.12"), "fanotify", &[ATTACKS]),
    (None, "fanotify", &[ATTACKS]),
];

/// How much of a failed stage's log is shown.
const LOG_LINES: usize = 40;
/// Emulation is slow, and a guest that stands still is found out sooner than this.
const GUEST_TIMEOUT_SECS: u64 = 3600;

/// `cargo xtask test`.
#[derive(clap::Args)]
pub struct Args {
    /// Boot only this kernel (may be repeated); otherwise every promised one
    #[arg(long)]
    kernel: Vec<Wanted>,
    /// Run only this stage (may be repeated)
    #[arg(long, value_name = "STAGE")]
    only: Vec<Stage>,
    /// Run only the guests' cases of this name
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// Run every suite on every kernel (some hours), not what fits into an hour
    #[arg(long)]
    everything: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Stage {
    Setup,
    Fmt,
    Build,
    Clippy,
    Docs,
    Unit,
    Package,
    Fleet,
    Pods,
    Fuzz,
    Guest,
}

/// What a stage came to.
struct Report {
    ok: bool,
    tally: Tally,
}

impl Report {
    /// A stage that failed without a failed case still counts as one: the closing line must not look well.
    fn new(ok: bool, mut tally: Tally) -> Self {
        if !ok && tally.failed == 0 {
            tally.failed = 1;
        }
        Self { ok, tally }
    }
}

/// Runs the stages. The last line printed is the sum of all cases.
pub fn run(args: &Args) -> Result<ExitCode> {
    let logs = paths::target().join("test-logs");
    fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
    let chosen = |stage| args.only.is_empty() || args.only.contains(&stage);

    let mut reports = Vec::new();
    let mut built = true;
    for stage in Stage::value_variants()
        .iter()
        .copied()
        .filter(|stage| chosen(*stage))
    {
        if stage == Stage::Guest {
            reports.extend(guests(args, &logs, built));
        } else {
            let report = on_this_machine(stage, &logs);
            built = built && (report.ok || !matches!(stage, Stage::Build));
            reports.push(report);
        }
    }
    let ok = reports.iter().all(|report| report.ok);
    let mut sum = Tally::default();
    for report in &reports {
        sum += report.tally;
    }
    println!("{sum}");
    Ok(if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn on_this_machine(stage: Stage, logs: &Path) -> Report {
    let name = format!("{stage:?}").to_lowercase();
    let log = logs.join(format!("{name}.log"));
    print!("stage {name} ... ");
    // It is only for those who watch.
    let _ = io::stdout().flush();
    let start = Instant::now();
    let result = commands(stage)
        .and_then(|commands| run_all(commands, &log))
        .and_then(|()| counted(stage, &log));
    let tally = match stage {
        Stage::Unit => Tally::of_cargo(&read(&log)),
        Stage::Fuzz => Tally::of_fuzzing(&read(&log)),
        Stage::Pods => Tally::of_guest(&read(&log)).unwrap_or_default(),
        _ => Tally::default(),
    };
    println!("{}", verdict(&result, start, &log));
    Report::new(result.is_ok(), tally)
}

fn commands(stage: Stage) -> Result<Vec<Command>> {
    let cargo = |words: &str| {
        let mut cargo = toolchain::host_cargo();
        cargo.args(words.split(' '));
        cargo
    };
    let xtask = |task: &str| -> Result<Command> {
        let mut xtask = Command::new(std::env::current_exe().context("cannot find xtask itself")?);
        xtask.args(task.split(' '));
        Ok(xtask)
    };
    Ok(match stage {
        Stage::Setup => vec![xtask("setup --tests")?],
        Stage::Fmt => vec![cargo("fmt --all --check")],
        Stage::Build => vec![xtask("build")?],
        Stage::Clippy => vec![
            cargo("clippy --workspace --exclude enforcer-ebpf --all-targets -- -D warnings"),
            // As if for this machine: no toolchain that builds for eBPF has a clippy.
            cargo("clippy --package enforcer-ebpf --lib --bins -- -D warnings"),
        ],
        Stage::Docs => {
            let mut docs = cargo("doc --no-deps --workspace --exclude enforcer-ebpf");
            docs.env("RUSTDOCFLAGS", "-D warnings");
            vec![docs]
        }
        Stage::Unit => vec![cargo(
            "test --workspace --exclude enforcer-ebpf --no-fail-fast",
        )],
        Stage::Package => vec![
            xtask("package --no-build --check")?,
            xtask("image --no-build --check")?,
        ],
        Stage::Fleet => vec![fleet(1)?, fleet(3)?],
        Stage::Pods => vec![pods()?],
        Stage::Fuzz => fuzz::commands()?,
        Stage::Guest => vec![],
    })
}

/// Nodes that follow so many servers; of several, one and a part of their store die on the way. It fails if anything is
/// lost.
fn fleet(servers: u16) -> Result<Command> {
    let mut fleet = Command::new(paths::built_program("enforcer-tests")?);
    fleet
        .args(["fleet", "--nodes", "200", "--entitlements", "20"])
        .args(["--servers", &servers.to_string()])
        .env("PATH", paths::path_with_programs()?);
    Ok(fleet)
}

/// Pods of Debian's containerd, on this machine's own kernel.
fn pods() -> Result<Command> {
    let mut pods = Command::new(paths::built_program("enforcer-tests")?);
    pods.args(["pods", "--pods", "40", "--programs"])
        .arg(containers::unpacked()?)
        .env("PATH", paths::path_with_programs()?);
    Ok(pods)
}

fn run_all(commands: Vec<Command>, log: &Path) -> Result<()> {
    let out = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
    for mut command in commands {
        cmd::stream(command.stdout(out.try_clone()?).stderr(out.try_clone()?))?;
    }
    Ok(())
}

/// No tests at all is what a broken test run looks like, too.
fn counted(stage: Stage, log: &Path) -> Result<()> {
    let passed = match stage {
        Stage::Unit => Tally::of_cargo(&read(log)).passed,
        Stage::Fuzz => Tally::of_fuzzing(&read(log)).passed,
        Stage::Pods => Tally::of_guest(&read(log)).unwrap_or_default().passed,
        _ => return Ok(()),
    };
    if passed == 0 {
        bail!("no test was run");
    }
    Ok(())
}

/// What a kernel runs, and how it is booted.
#[derive(Clone, Debug)]
struct Job {
    /// `None` for this machine's own.
    kernel: Option<Wanted>,
    tier: &'static str,
    suites: &'static [&'static str],
}

/// The rows of the table for the kernels asked for; a kernel by its path runs everything.
fn jobs(args: &Args) -> Vec<Job> {
    let table = if args.everything { EVERYTHING } else { USUAL };
    let asked_for = |kernel: &Option<Wanted>| {
        let asked = &args.kernel;
        asked.is_empty() || kernel.as_ref().is_some_and(|kernel| asked.contains(kernel))
    };
    let listed = table.iter().map(|(kernel, tier, suites)| Job {
        kernel: kernel.and_then(|name| name.parse().ok()),
        tier,
        suites,
    });
    let own = args
        .kernel
        .iter()
        .filter(|it| matches!(it, Wanted::Path(_)));
    let own = own.map(|kernel| Job {
        kernel: Some(kernel.clone()),
        tier: "lsm",
        suites: &[PROBE, ATTACKS, REPLAY, CASES],
    });
    listed
        .filter(|job| asked_for(&job.kernel))
        .chain(own)
        .collect()
}

/// Boots all kernels, a few at a time.
fn guests(args: &Args, logs: &Path, built: bool) -> Vec<Report> {
    let jobs = jobs(args);
    if !built {
        println!("stage guest ... FAILED (not run, since there is nothing to run: build failed)");
        return jobs
            .iter()
            .map(|_| Report::new(false, Tally::default()))
            .collect();
    }
    let queue = Mutex::new(jobs.into_iter());
    let next = || queue.lock().ok()?.next();
    let worker = || {
        let mut reports = Vec::new();
        while let Some(job) = next() {
            reports.push(run_job(&job, args.filter.as_deref(), logs));
        }
        reports
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..GUESTS).map(|_| scope.spawn(worker)).collect();
        workers
            .into_iter()
            .flat_map(|worker| {
                worker
                    .join()
                    .unwrap_or_else(|_| vec![Report::new(false, Tally::default())])
            })
            .collect()
    })
}

fn run_job(job: &Job, filter: Option<&str>, logs: &Path) -> Report {
    let place = match &job.kernel {
        None => "host".to_owned(),
        Some(Wanted::Path(path)) => path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        Some(kernel) => kernel.to_string(),
    };
    let name = format!("{place} {}", job.tier);
    let log = logs.join(format!("{place}-{}.log", job.tier));
    let start = Instant::now();
    let result = run_suites(job, filter, &log);
    let tally = Tally::of_guest(&read(&log));
    let result = result.and_then(|()| match &job.kernel {
        // This machine is nobody's promise: what its kernel cannot do, or what would touch others, is skipped.
        None => complete(tally.map(|tally| Tally {
            skipped: 0,
            ..tally
        })),
        Some(_) => complete(tally),
    });
    println!("stage guest {name} ... {}", verdict(&result, start, &log));
    Report::new(result.is_ok(), tally.unwrap_or_default())
}

fn run_suites(job: &Job, filter: Option<&str>, log: &Path) -> Result<()> {
    let out = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
    let command = script(job, filter);
    let Some(kernel) = &job.kernel else {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &command])
            .env("PATH", paths::path_with_programs()?)
            .stdout(out.try_clone()?)
            .stderr(out);
        return cmd::stream(&mut shell);
    };
    let options = vm::Options {
        timeout: GUEST_TIMEOUT_SECS,
        // A list without `bpf`: there the other tiers are what there is.
        lsm: (job.tier != "lsm").then(|| vm::LSM_WITHOUT_BPF.to_owned()),
        tools: job.suites.contains(&TOOLS),
        ..vm::Options::for_kernel(kernel.clone())
    };
    let outcome = vm::run(&options, &command, out)?;
    match &outcome {
        vm::Outcome::Exited(0) => Ok(()),
        vm::Outcome::Exited(status) => bail!("`{command}` ended with status {status}, expected 0"),
        failed => bail!("{}", failed.report().unwrap_or_default()),
    }
}

/// The guest's script. Each suite runs whatever the others came to, and each has its own closing line.
fn script(job: &Job, filter: Option<&str>) -> String {
    let tier = job.tier;
    if let Some(filter) = filter {
        let filter = filter.replace('\'', r"'\''");
        return format!(
            "export ENFORCER_TIER={tier}; enforcer-tests guest --filter '{filter}'; enforcer-tests attacks --filter '{filter}'"
        );
    }
    let suites: Vec<String> = job
        .suites
        .iter()
        .map(|suite| format!("{suite} || bad=1"))
        .collect();
    format!(
        "export ENFORCER_TIER={tier}; {}; [ -z \"$bad\" ]",
        suites.join("; ")
    )
}

/// On a promised kernel every case can be run, so one that was skipped is one that is not kept.
fn complete(tally: Option<Tally>) -> Result<()> {
    match tally {
        None => bail!("no line `N passed, N failed, N skipped` in the guest's output"),
        Some(Tally { failed: 1.., .. }) => bail!("cases failed"),
        Some(Tally { skipped: 1.., .. }) => bail!("cases were skipped"),
        Some(Tally { passed: 0, .. }) => bail!("no case was run"),
        Some(_) => Ok(()),
    }
}

fn verdict(result: &Result<()>, start: Instant, log: &Path) -> String {
    let seconds = start.elapsed().as_secs_f64();
    match result {
        Ok(()) => format!("ok ({seconds:.1} s)"),
        Err(error) => format!(
            "FAILED ({seconds:.1} s)\n{error:#}\n{}last lines of {}:\n{}",
            failures(&read(log)),
            log.display(),
            cmd::tail_of_file(log, LOG_LINES)
        ),
    }
}

/// A log's lines that name a failed case: in a long log they stand far above its end.
fn failures(log: &str) -> String {
    log.lines()
        .filter(|line| line.starts_with("FAILED ") || line.ends_with("... FAILED"))
        .map(|line| format!("{line}\n"))
        .collect()
}

fn read(log: &Path) -> String {
    String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn is_complete(passed: u64, failed: u64, skipped: u64) -> bool {
        complete(Some(Tally {
            passed,
            failed,
            skipped,
        }))
        .is_ok()
    }

    #[test]
    fn a_guest_must_run_cases_and_all_of_them() {
        assert!(is_complete(1, 0, 0));
        assert!(!is_complete(1, 1, 0));
        assert!(!is_complete(1, 0, 1));
        assert!(!is_complete(0, 0, 0));
        assert!(complete(None).is_err());
    }

    #[test]
    fn no_kernel_is_left_out_for_the_time() {
        let kernels = |table: &[Row]| -> BTreeSet<_> { table.iter().map(|row| row.0).collect() };
        assert_eq!(kernels(USUAL), kernels(EVERYTHING));
        let mut named = EVERYTHING.iter().filter_map(|row| row.0);
        assert!(named.all(|name| name.parse::<Wanted>().is_ok()));
    }

    #[test]
    fn failed_cases_are_shown_by_name() {
        let log =
            "ok a (1.0 s)\nFAILED b: got through (0.1 s)\ntest c ... FAILED\n1 passed, 2 failed\n";
        assert_eq!(
            failures(log),
            "FAILED b: got through (0.1 s)\ntest c ... FAILED\n"
        );
    }

    #[test]
    fn a_failed_stage_shows_in_the_sum() {
        assert_eq!(Report::new(false, Tally::default()).tally.failed, 1);
        assert_eq!(Report::new(true, Tally::default()).tally.failed, 0);
    }
}
