//! The thread that answers permission events.
//!
//! Whoever opens a marked file waits for this thread, the daemon's own threads among them. So it waits for
//! nobody: it takes no lock, opens no file, writes no log, and what it has to tell it puts into channels that
//! may be full. What it needs to know it takes from a snapshot that the engine replaces as a whole, from the
//! kernel by iterators, and from its own handle to the table of holders.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use enforcer_common::address::Destination;
use enforcer_common::decide;
use enforcer_common::event::{ANCESTORS, Gate, Kind, Notice, NoticeKind, Use, taken};
use enforcer_common::ids::{BootNs, CgroupId, CredentialId, InodeKey, Tgid, Tid};
use enforcer_common::iterate::{FileRecord, ThreadRecord};
use enforcer_common::tables::{CredentialKey, Tables as _};
use enforcer_common::verdict::{Reason, Verdict};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::fanotify::{Fanotify, FanotifyEvent, FanotifyResponse, MaskFlags, Response};
use tokio::sync::mpsc;

use super::call;
use super::kill::kill;
use super::marks::{self, mark};
use super::snapshot::{Found, Rules, Snapshot};
use crate::canary;
use crate::kernel::clock::boot_now;
use crate::kernel::holders::{Holders, Recorded};
use crate::kernel::iterate::Inquiry;
use crate::respond::{Leave, Limiter};

/// How often the thread looks whether it should end.
const LOOK_EVERY_MS: u16 = 500;
/// After an error of the group itself, such as too many open files.
const PAUSE: Duration = Duration::from_millis(5);

/// What the gate did not pass on because a channel was full, and what went wrong.
#[derive(Debug, Default)]
pub struct Counts {
    /// Permission events answered.
    pub answered: AtomicU64,
    /// Denials that were not reported.
    pub denials: AtomicU64,
    /// Allowed uses that were not reported.
    pub uses: AtomicU64,
    /// Notices that were not reported.
    pub notices: AtomicU64,
    /// Events that were denied because they could not be understood.
    pub unclear: AtomicU64,
}

/// What goes wrong in the gate, for the daemon's log.
#[derive(Debug)]
pub struct Trouble {
    /// What was being done.
    pub step: &'static str,
    /// Why it failed.
    pub reason: String,
}

/// Where the gate's reports go.
#[derive(Clone)]
pub(super) struct Reports {
    pub denials: mpsc::Sender<Use>,
    pub uses: mpsc::Sender<Use>,
    pub notices: mpsc::Sender<Notice>,
    pub troubles: mpsc::Sender<Trouble>,
}

/// Everything the thread has.
pub(super) struct Answerer {
    pub group: Arc<Fanotify>,
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    pub inquiry: Inquiry,
    pub holders: Holders,
    pub reports: Reports,
    pub counts: Arc<Counts>,
    pub kills: Limiter<u64>,
    pub stop: Arc<AtomicBool>,
    /// Files that appeared and are not in the snapshot yet.
    pub appeared: HashMap<InodeKey, CredentialId>,
    /// Address of the snapshot that those were last compared with: only to see that there is another one.
    pub compared: usize,
}

/// What is to be answered.
struct Answer {
    permit: bool,
    report: Option<Use>,
}

impl Answer {
    const PERMIT: Self = Self {
        permit: true,
        report: None,
    };
    const DENY: Self = Self {
        permit: false,
        report: None,
    };
}

impl Answerer {
    /// Answers until told to stop.
    pub fn run(mut self) {
        // Nobody else would answer. The kernel lets everyone go on when the group is closed, and whoever looks
        // after the daemon starts it again; an unanswered reader would wait for ever.
        let _abort = AbortOnPanic;
        while !self.stop.load(Ordering::Relaxed) {
            let mut descriptors = [PollFd::new(self.group.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut descriptors, PollTimeout::from(LOOK_EVERY_MS));
            self.answer_all();
        }
    }

    fn answer_all(&mut self) {
        loop {
            match self.group.read_events() {
                Ok(events) if events.is_empty() => return,
                Ok(events) => {
                    for event in &events {
                        self.answer(event);
                    }
                }
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                // The kernel has denied the event whose file it could not open for us.
                Err(error) => {
                    self.counts.unclear.fetch_add(1, Ordering::Relaxed);
                    self.trouble("reading a permission event", error.to_string());
                    std::thread::sleep(PAUSE);
                    return;
                }
            }
        }
    }

    /// Answers one event, once, whatever becomes of it.
    fn answer(&mut self, event: &FanotifyEvent) {
        let permission =
            MaskFlags::FAN_OPEN_PERM | MaskFlags::FAN_ACCESS_PERM | MaskFlags::FAN_OPEN_EXEC_PERM;
        let asked = event.mask() & permission;
        let Some(file) = event.fd() else {
            return;
        };
        if asked.is_empty() {
            return;
        }
        let answer = self.judge(event, file, !asked.contains(MaskFlags::FAN_ACCESS_PERM));
        let response = match answer.permit {
            true => Response::FAN_ALLOW,
            false => Response::FAN_DENY,
        };
        let written = self
            .group
            .write_response(FanotifyResponse::new(file, response));
        self.counts.answered.fetch_add(1, Ordering::Relaxed);
        match written {
            // ENOENT: it waits no longer, because it was killed.
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(error) => self.trouble("answering a permission event", error.to_string()),
        }
        if let Some(report) = answer.report {
            let (channel, lost) = match report.taken {
                taken::NOTHING => (&self.reports.uses, &self.counts.uses),
                _ => (&self.reports.denials, &self.counts.denials),
            };
            let credential = report.credential;
            // Those of canaries nobody tells.
            if channel.try_send(report).is_err() && !self.is_canary(credential) {
                lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn is_canary(&self, credential: CredentialId) -> bool {
        let snapshot = self.snapshot.load();
        let rules = snapshot.rules.as_ref();
        let info = rules.and_then(|it| it.policy.credential_info.get(&credential));
        info.is_some_and(|it| canary::is_canary(&it.id))
    }

    fn judge(&mut self, event: &FanotifyEvent, file: BorrowedFd<'_>, opens: bool) -> Answer {
        let tid = event.pid();
        if is_ours(tid) {
            return Answer::PERMIT;
        }
        let snapshot = self.snapshot.load_full();
        let Some(rules) = &snapshot.rules else {
            return Answer::PERMIT;
        };
        let file_record = match self.inquiry.own_file(file) {
            Ok(Some(record)) => record,
            other => return self.unclear("asking for a file", other.err()),
        };
        let Some(credential) = self.find(&snapshot, &file_record, file) else {
            return Answer::PERMIT;
        };
        let tid = Tid(tid.cast_unsigned());
        let thread = match self.inquiry.thread(tid) {
            Ok(Some(record)) => record,
            // Killed meanwhile, or of a pid namespace that this process does not see into.
            other => return self.unclear("asking for a thread", other.err()),
        };
        if opens && file_record.internal == 0 && call::opens_for_writing(&thread) {
            // As on the other tiers: what is gated is reading.
            return Answer::PERMIT;
        }
        let now = boot_now();
        let mut verdict = decide::read(&rules.tables, now, &thread.task, credential);
        if !verdict.governed() {
            return Answer::PERMIT;
        }
        let mut recorded = Recorded::Known;
        if !verdict.refuses() && !verdict.trusted() {
            match self.hold(rules, &thread, credential) {
                Some(it) => recorded = it,
                None => verdict = verdict.because(Reason::TooManyHeld),
            }
        }
        let done = self.act(&thread, verdict);
        // Each read(2) of an open file asks again: what is allowed was reported with the open.
        let told = opens || recorded == Recorded::New || verdict.reason() != 0;
        Answer {
            permit: !verdict.refuses(),
            report: told.then(|| report(now, rules, &file_record, &thread, verdict, done)),
        }
    }

    /// The credential that the file is. One that is new is marked on the spot, so that it stays protected by
    /// whatever name it has from now on.
    fn find(
        &mut self,
        snapshot: &Snapshot,
        record: &FileRecord,
        file: BorrowedFd<'_>,
    ) -> Option<CredentialId> {
        let key = record.key.inode;
        let address = std::ptr::from_ref(snapshot).addr();
        if self.compared != address {
            self.compared = address;
            let known = &snapshot.places.files;
            self.appeared.retain(|key, _| !known.contains_key(key));
        }
        match snapshot.find(record) {
            Found::Known(credential) => Some(credential),
            Found::New(credential) => {
                if self.appeared.insert(key, credential) != Some(credential) {
                    if let Err(error) = mark(&self.group, file, marks::Kind::File) {
                        self.trouble("marking a new file", error.to_string());
                    }
                    self.notify(record);
                }
                Some(credential)
            }
            Found::Nothing => self.appeared.get(&key).copied(),
        }
    }

    fn notify(&self, record: &FileRecord) {
        let notice = Notice {
            time: boot_now(),
            cgroup: CgroupId(0),
            directory: record.parent,
            file: record.key.inode,
            kind: NoticeKind::Appeared as u32,
            reserved: 0,
            name: record.name,
        };
        if self.reports.notices.try_send(notice).is_err() {
            self.counts.notices.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Records the holding, before the read goes on. `None` if that failed.
    fn hold(
        &mut self,
        rules: &Rules,
        thread: &ThreadRecord,
        credential: CredentialId,
    ) -> Option<Recorded> {
        let key = CredentialKey::new(rules.generation, credential);
        let flags = rules.tables.credential(&key).unwrap_or_default();
        self.holders.record(&thread.task, credential, flags).ok()
    }

    /// Carries out a verdict. Returns what was done, one of [`taken`].
    fn act(&mut self, thread: &ThreadRecord, verdict: Verdict) -> u8 {
        if !verdict.refuses() {
            return taken::NOTHING;
        }
        if !verdict.kills() {
            return taken::REFUSED;
        }
        let workload = thread.task.workload_number();
        if self.kills.ask(workload, boot_now()) == Leave::Refused {
            return taken::LIMITED;
        }
        // The signal is there before the answer.
        let inquiry = &mut self.inquiry;
        match kill(&thread.task, || inquiry.thread(thread.tid).ok().flatten()) {
            Ok(()) => taken::KILLED,
            Err(error) => {
                self.trouble("killing a process", error.to_string());
                taken::REFUSED
            }
        }
    }

    /// Nothing is known of it, so it is denied.
    fn unclear(&self, step: &'static str, error: Option<crate::kernel::iterate::Error>) -> Answer {
        self.counts.unclear.fetch_add(1, Ordering::Relaxed);
        let reason = error.map_or_else(
            || "the kernel does not show it (killed meanwhile?)".to_owned(),
            |error| crate::chain(&error),
        );
        self.trouble(step, reason);
        Answer::DENY
    }

    fn trouble(&self, step: &'static str, reason: String) {
        // What does not fit is counted where it matters; this is for the log.
        let _ = self.reports.troubles.try_send(Trouble { step, reason });
    }
}

/// Ends the daemon if the thread panics.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// Whether a thread is one of this process.
fn is_ours(tid: i32) -> bool {
    // SAFETY: a system call on numbers; signal 0 only asks.
    let result = unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), tid, 0) };
    result == 0
}

fn report(
    time: BootNs,
    rules: &Rules,
    file: &FileRecord,
    thread: &ThreadRecord,
    verdict: Verdict,
    done: u8,
) -> Use {
    Use {
        time,
        task: thread.task,
        destination: Destination::default(),
        file: file.key.inode,
        generation: rules.generation,
        credential: verdict.credential(),
        entitlement: verdict.entitlement(),
        ancestors: [Tgid(0); ANCESTORS],
        tid: thread.tid,
        parent: thread.parent,
        kind: Kind::Read as u8,
        gate: Gate::Fanotify as u8,
        reason: verdict.reason(),
        mode: verdict.mode() as u8,
        action: verdict.action_code(),
        taken: done,
        trusted: u8::from(verdict.trusted()),
        target: Tgid(0),
        reserved: 0,
        comm: thread.comm,
        executable_name: thread.executable_name,
    }
}
