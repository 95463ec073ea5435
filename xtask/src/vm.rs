//! Boots a kernel in QEMU, by emulation alone (no /dev/kvm needed), and runs a command in it.
//!
//! Three serial ports keep three things apart: the kernel's messages, the command's output, and what the
//! guest's first process says about itself (`ready`, `alive`, `status N`).

use std::{
    fmt,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::{
    cmd, initramfs,
    kernels::{self, Kernel, Wanted},
    modules, paths, tools,
};

/// The exit status that says that the guest failed, not the command in it.
pub const VM_FAILURE: u8 = 125;

/// The guest says that it is alive every 5 s; a host with other work may delay that.
const SILENCE: Duration = Duration::from_secs(60);
/// How long the guest may take to switch itself off.
const SHUTDOWN: Duration = Duration::from_secs(10);
/// How much of the kernel's log is shown when the guest failed.
const LOG_LINES: usize = 40;

/// For kernels whose default list lacks `bpf`: Debian's newer default, as far as it is compiled in.
const LSM_WITH_BPF: &str = "lockdown,yama,loadpin,safesetid,integrity,apparmor,bpf";

/// As Ubuntu and many managed nodes boot.
pub const LSM_WITHOUT_BPF: &str = "lockdown,yama,apparmor";

/// All that QEMU can emulate but one instruction: with 7.2's `cmpxchg16b`, 11 of 65 boots ended in a double
/// fault with garbage in the flags; without it, 0 of 65. Kernels have another way where it is missing.
const CPU: &str = "max,-cx16";

/// What to boot and how.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// A series (5.10, 6.1, 6.12, 6.18), `newest`, or the path of a kernel image
    #[arg(long, default_value = "6.12")]
    pub kernel: Wanted,
    /// Put this directory's files into the guest's /share
    #[arg(long, value_name = "DIR")]
    pub share: Vec<PathBuf>,
    /// The kernel's `lsm=`, instead of its default (before 6.1: a list that has `bpf`)
    #[arg(long, value_name = "LIST")]
    pub lsm: Option<String>,
    /// The guest's memory
    #[arg(long, value_name = "MB", default_value_t = 1024)]
    pub memory: u32,
    /// The guest's processors
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub cpus: u32,
    /// How long boot and command may take together
    #[arg(long, value_name = "SECS", default_value_t = 900)]
    pub timeout: u64,
    /// More words for the kernel's command line
    #[arg(
        long,
        value_name = "CMDLINE",
        default_value = "",
        allow_hyphen_values = true
    )]
    pub append: String,
    /// Debian's Python, git, ssh, docker, runc and dpkg for the guest
    #[arg(long)]
    pub tools: bool,
    /// Count instructions as time on one processor, for measurements that repeat
    #[arg(long)]
    pub icount: bool,
}

impl Options {
    /// The command line's defaults, for this kernel.
    pub fn for_kernel(kernel: Wanted) -> Self {
        Self {
            kernel,
            share: Vec::new(),
            lsm: None,
            memory: 1024,
            cpus: 2,
            timeout: 900,
            append: String::new(),
            tools: false,
            icount: false,
        }
    }
}

/// `cargo xtask vm`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    options: Options,
    /// The command: its words, joined by spaces, are the guest's shell script
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// How a guest ended.
#[derive(Debug)]
pub enum Outcome {
    /// The command ended with this status.
    Exited(u8),
    /// The guest did not get that far.
    Failed {
        /// What went wrong.
        failure: Failure,
        /// The kernel's messages, left for inspection.
        log: PathBuf,
    },
}

/// What can go wrong with a guest.
#[derive(Debug, PartialEq)]
pub enum Failure {
    /// The kernel panicked.
    Panic,
    /// No sign of life for this long.
    Hang(Duration),
    /// The command went on for longer than allowed.
    Timeout(Duration),
    /// QEMU ended, and there was not one byte on any port.
    Nothing(String),
    /// QEMU ended without a status from the guest.
    NoStatus(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panic => f.write_str("the guest's kernel panicked"),
            Self::Hang(silence) => write!(
                f,
                "the guest hangs: no sign of life for {} s, expected one every 5 s",
                silence.as_secs()
            ),
            Self::Timeout(limit) => write!(
                f,
                "the command was still running after {} s: allow more with --timeout, if it is merely slow",
                limit.as_secs()
            ),
            Self::Nothing(qemu) => write!(
                f,
                "the guest printed nothing at all and gave no status, so it hardly started; QEMU said: {}",
                or_nothing(qemu)
            ),
            Self::NoStatus(qemu) => write!(
                f,
                "the guest ended without reporting the command's status; QEMU said: {}",
                or_nothing(qemu)
            ),
        }
    }
}

fn or_nothing(text: &str) -> &str {
    if text.is_empty() { "(nothing)" } else { text }
}

impl Outcome {
    /// The failure with the end of the kernel's log, for people; none if the command got its status out.
    pub fn report(&self) -> Option<String> {
        let Self::Failed { failure, log } = self else {
            return None;
        };
        Some(format!(
            "{failure}\nlast lines of the kernel's log ({}):\n{}",
            log.display(),
            cmd::tail_of_file(log, LOG_LINES)
        ))
    }
}

/// Runs `cargo xtask vm`.
pub fn main(args: &Args) -> ExitCode {
    let outcome = run(&args.options, &args.command.join(" "), io::stdout());
    ExitCode::from(status(outcome))
}

/// The exit status for an outcome, after telling what went wrong, if anything did.
pub fn status(outcome: Result<Outcome>) -> u8 {
    match outcome {
        Ok(Outcome::Exited(status)) => status,
        Ok(failed) => {
            eprintln!("xtask: {}", failed.report().unwrap_or_default());
            VM_FAILURE
        }
        Err(error) => {
            eprintln!("xtask: {error:#}");
            VM_FAILURE
        }
    }
}

/// Boots a guest, runs the shell script `command` in it and copies its output to `out` as it comes.
pub fn run(options: &Options, command: &str, out: impl Write + Send) -> Result<Outcome> {
    let kernel = kernels::get(&options.kernel)?;
    let mut archives: Vec<PathBuf> = modules::archive(&kernel)?.into_iter().collect();
    if options.tools {
        archives.push(tools::archive()?);
    }
    let run = RunDir::create()?;
    initramfs::write(
        &run.path("initrd"),
        &initramfs::Contents {
            archives: &archives,
            share: &options.share,
            command,
        },
    )?;
    eprintln!("xtask: booting {}", kernel.release);
    let child = qemu(options, &kernel, &run)?
        .spawn()
        .context("cannot start QEMU: try `cargo xtask setup`")?;
    let outcome = watch(child, options, &run, out)?;
    match outcome {
        Ok(status) => {
            run.remove();
            Ok(Outcome::Exited(status))
        }
        Err(failure) => {
            // Large, and made anew at every start.
            let _ = fs::remove_file(run.path("initrd"));
            Ok(Outcome::Failed {
                failure,
                log: run.path("kernel.log"),
            })
        }
    }
}

/// A directory for one guest's files.
struct RunDir(PathBuf);

impl RunDir {
    fn create() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = paths::target().join(format!("vm/{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        for name in ["kernel.log", "control", "qemu.log"] {
            File::create(dir.join(name))
                .with_context(|| format!("cannot create {name} in {}", dir.display()))?;
        }
        Ok(Self(dir))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn text(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.path(name)).unwrap_or_default()).into_owned()
    }

    fn size(&self, name: &str) -> u64 {
        fs::metadata(self.path(name)).map_or(0, |metadata| metadata.len())
    }

    fn remove(&self) {
        // What is left behind is in `target`, and only costs space.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn qemu(options: &Options, kernel: &Kernel, run: &RunDir) -> Result<Command> {
    kernels::check_image(kernel)?;
    // QEMU must not outlive us however we end: Ctrl-C reaches it by itself, this covers the rest.
    let mut qemu = Command::new(cmd::need("setpriv")?);
    qemu.args(["--pdeathsig", "KILL"]);
    qemu.arg(cmd::need("qemu-system-x86_64")?);
    qemu.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ]);
    qemu.args(["-accel", "tcg,thread=single"]);
    qemu.args(["-m", &options.memory.to_string()]);
    if options.icount {
        qemu.args(["-icount", "shift=0,sleep=off", "-smp", "1"]);
        qemu.args(["-cpu", &format!("{CPU},-erms,-fsrm")]);
    } else {
        qemu.args(["-smp", &options.cpus.to_string(), "-cpu", CPU]);
    }
    qemu.arg("-kernel").arg(&kernel.image);
    qemu.arg("-initrd").arg(run.path("initrd"));
    qemu.args(["-append", &command_line(options, kernel)]);
    qemu.arg("-chardev")
        .arg(file_port("kernel", &run.path("kernel.log")));
    qemu.args(["-chardev", "stdio,id=output,signal=off"]);
    qemu.arg("-chardev")
        .arg(file_port("control", &run.path("control")));
    for port in ["kernel", "output", "control"] {
        qemu.args(["-serial", &format!("chardev:{port}")]);
    }
    let log = File::create(run.path("qemu.log"))?;
    qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    Ok(qemu)
}

fn file_port(id: &str, path: &Path) -> String {
    // A comma separates QEMU's options; two stand for one.
    let path = path.to_string_lossy().replace(',', ",,");
    format!("file,id={id},path={path}")
}

fn command_line(options: &Options, kernel: &Kernel) -> String {
    let mut words = vec!["console=ttyS0", "rdinit=/init", "panic=-1", "oops=panic"];
    let lsm = match &options.lsm {
        Some(list) => Some(list.as_str()),
        None => kernel.is_before(6, 1).then_some(LSM_WITH_BPF),
    };
    let lsm = lsm.map(|list| format!("lsm={list}"));
    words.extend(lsm.as_deref());
    if options.icount {
        // `rep movs` takes as many instructions as bytes; calibrated clocks differ from run to run.
        words.extend(["clearcpuid=112", "tsc=reliable", "clocksource=tsc"]);
    }
    words.push(&options.append);
    words.join(" ").trim_end().to_owned()
}

/// Copies the output and waits for the guest's end, or puts one to it.
fn watch(
    mut child: Child,
    options: &Options,
    run: &RunDir,
    out: impl Write + Send,
) -> Result<Result<u8, Failure>> {
    let output = child.stdout.take().context("QEMU's output is not a pipe")?;
    let copied = AtomicU64::new(0);
    thread::scope(|scope| {
        let copier = scope.spawn(|| copy(output, out, &copied));
        let limit = Duration::from_secs(options.timeout);
        let stopped = wait(&mut child, limit, run, &copied);
        // QEMU's end, by itself or by this, ends the copier too.
        let _ = child.kill();
        child.wait().context("cannot wait for QEMU")?;
        let _ = copier.join();
        if let Some(status) = reported_status(&run.text("control")) {
            return Ok(Ok(status));
        }
        Ok(Err(stopped?.unwrap_or_else(|| {
            why_ended(
                &run.text("kernel.log"),
                copied.load(Ordering::Relaxed),
                run.text("qemu.log").trim(),
            )
        })))
    })
}

fn copy(mut from: impl Read, mut to: impl Write, copied: &AtomicU64) {
    let mut buffer = [0; 16 * 1024];
    let mut listening = true;
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        copied.fetch_add(count as u64, Ordering::Relaxed);
        // A reader that has gone (`| head`) must not stop the guest's writing, nor its status.
        listening = listening
            && to
                .write_all(&buffer[..count])
                .and_then(|()| to.flush())
                .is_ok();
    }
}

/// Waits until QEMU has ended (nothing is returned) or must be ended (with the reason, if there is no status).
fn wait(
    child: &mut Child,
    limit: Duration,
    run: &RunDir,
    copied: &AtomicU64,
) -> Result<Option<Failure>> {
    let start = Instant::now();
    let mut last_seen = (0, 0, 0);
    let mut last_change = start;
    let mut reported = None;
    loop {
        if child.try_wait().context("cannot wait for QEMU")?.is_some() {
            return Ok(None);
        }
        let seen = (
            run.size("kernel.log"),
            run.size("control"),
            copied.load(Ordering::Relaxed),
        );
        if seen != last_seen {
            // QEMU has it in memory by now; gone from the disk, it is not left behind when we are killed.
            let _ = fs::remove_file(run.path("initrd"));
            last_seen = seen;
            last_change = Instant::now();
        }
        if reported.is_none() && reported_status(&run.text("control")).is_some() {
            reported = Some(Instant::now());
        }
        if reported.is_some_and(|at| at.elapsed() > SHUTDOWN) {
            return Ok(None);
        }
        if last_change.elapsed() > SILENCE {
            return Ok(Some(Failure::Hang(SILENCE)));
        }
        if start.elapsed() > limit {
            return Ok(Some(Failure::Timeout(limit)));
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn reported_status(control: &str) -> Option<u8> {
    // The last line may still be on its way.
    let complete = &control[..control.rfind('\n')?];
    complete
        .lines()
        .find_map(|line| line.trim().strip_prefix("status ")?.parse().ok())
}

fn why_ended(kernel_log: &str, output_bytes: u64, qemu: &str) -> Failure {
    if kernel_log.contains("Kernel panic") {
        Failure::Panic
    } else if kernel_log.is_empty() && output_bytes == 0 {
        Failure::Nothing(qemu.to_owned())
    } else {
        Failure::NoStatus(qemu.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_counts_when_its_line_is_whole() {
        assert_eq!(reported_status("ready\nalive\nstatus 3\n"), Some(3));
        assert_eq!(reported_status("ready\r\nstatus 130\r\n"), Some(130));
        assert_eq!(reported_status("ready\nstatus 1"), None);
        assert_eq!(reported_status(""), None);
    }

    #[test]
    fn each_end_without_a_status_has_its_name() {
        assert_eq!(
            why_ended("x\nKernel panic - not syncing: x", 1, ""),
            Failure::Panic
        );
        assert_eq!(
            why_ended("", 0, "no file"),
            Failure::Nothing("no file".into())
        );
        assert_eq!(
            why_ended("Linux version", 0, ""),
            Failure::NoStatus(String::new())
        );
    }
}
