//! Asking the kernel about threads and open files, by iterators: on every tier, without trampolines.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use aya::Ebpf;
use aya::maps::{Array, MapData};
use aya::programs::{Iter, Program};
use enforcer_common::ids::Tid;
use enforcer_common::iterate::{Asker, FileRecord, HolderRecord, Marking, ThreadRecord, Wanted};

use super::maps::{self, Maps};
use super::sys::{link_iterator, start_iterator};

/// Programs that every tier has, and what they iterate over.
pub const PROGRAMS: &[(&str, &str)] = &[(THREAD, "task"), (ORIGIN, "task"), (HOLDER, "task_file")];
/// The one that only the `fanotify` tier needs: elsewhere a hook shows the daemon's files.
pub const OWN_FILE: (&str, &str) = ("iterate_own_file", "task_file");
/// The same for sockets where hooks gate them: those are not opened, and so not seen by a hook.
pub const OWN_SOCKET: (&str, &str) = ("iterate_own_socket", "task_file");
/// And the one that it uses from 5.15 on.
pub const THREAD_CALL: (&str, &str) = ("iterate_thread_call", "task");

const THREAD: &str = "iterate_thread";
const HOLDER: &str = "iterate_holder";
const ORIGIN: &str = "iterate_origin";
/// More passes than generations of processes that were made while one was going on.
const PASSES: u32 = 64;

/// What a read of an iterator takes at most.
const BUFFER_BYTES: usize = 32 * 1024;

/// Why the kernel does not tell.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program is not there.
    #[error("iterator `{0}` is not loaded")]
    NotLoaded(&'static str),
    /// A system call failed.
    #[error("cannot {step} iterator `{program}`")]
    Failed {
        /// What was done.
        step: &'static str,
        /// The program.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// What is wanted cannot be written down.
    #[error(transparent)]
    Table(#[from] maps::Error),
}

/// The facts of a thread; `None` if there is no such thread (any more).
pub fn thread(ebpf: &mut Ebpf, tid: Tid) -> Result<Option<ThreadRecord>, Error> {
    let wanted = Wanted {
        thread: tid,
        ..Wanted::default()
    };
    Maps(ebpf).set("WANTED", Asker::Engine as u32, wanted)?;
    let program = program(ebpf, THREAD)?;
    let found = run(program, THREAD, Some(tid))?;
    Ok(pick_thread(&found, tid))
}

/// What the kernel knows of an open file of this process, where no hook shows it.
pub fn own_file(ebpf: &mut Ebpf, file: BorrowedFd<'_>) -> Result<Option<FileRecord>, Error> {
    opened(ebpf, OWN_FILE.0, file)
}

/// What it knows of a socket in the file system, opened with `O_PATH`, where hooks gate sockets.
pub fn own_socket(ebpf: &mut Ebpf, file: BorrowedFd<'_>) -> Result<Option<FileRecord>, Error> {
    opened(ebpf, OWN_SOCKET.0, file)
}

fn opened(
    ebpf: &mut Ebpf,
    name: &'static str,
    file: BorrowedFd<'_>,
) -> Result<Option<FileRecord>, Error> {
    let wanted = Wanted {
        thread: Tid(0),
        descriptor: file.as_raw_fd() as u32,
    };
    Maps(ebpf).set("WANTED", Asker::Engine as u32, wanted)?;
    let found = run(program(ebpf, name)?, name, Some(Tid(std::process::id())))?;
    Ok(pick_file(&found, file))
}

/// Every process that has a protected file open for reading, once for each descriptor.
pub fn holders(ebpf: &Ebpf) -> Result<Vec<HolderRecord>, Error> {
    let found = run(program(ebpf, HOLDER)?, HOLDER, None)?;
    // SAFETY: every bit pattern of the record's integers is a value.
    Ok(unsafe { records(&found) }.collect())
}

/// Notes where the processes that run come from, until a pass over them finds nothing new. `false` if that did not come.
pub fn mark_origins(ebpf: &mut Ebpf, marking: Marking) -> Result<bool, Error> {
    Maps(ebpf).set("MARKING", 0, marking)?;
    for _ in 0..PASSES {
        if run(program(ebpf, ORIGIN)?, ORIGIN, None)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the daemon's own files are shown by the iterator, because this tier has no hook that would.
pub fn shows_own_files(ebpf: &Ebpf) -> bool {
    program(ebpf, OWN_FILE.0).is_ok()
}

/// The gate's own way to the iterators, which it shares with nobody.
pub struct Inquiry {
    wanted: Array<MapData, Wanted>,
    asked: Wanted,
    thread: OwnedFd,
    own_file: OwnedFd,
    /// Whether the kernel's word on system calls was found to be right.
    knows_calls: bool,
    buffer: Vec<u8>,
}

impl Inquiry {
    /// For the gate.
    pub fn new(ebpf: &Ebpf) -> Result<Self, Error> {
        let failed = |step, program| {
            move |source| Error::Failed {
                step,
                program,
                source,
            }
        };
        let thread = program(ebpf, THREAD_CALL.0).or_else(|_| program(ebpf, THREAD))?;
        let thread = (thread.try_clone_to_owned()).map_err(failed("keep", THREAD))?;
        let own_file = program(ebpf, OWN_FILE.0)?;
        let own_file = link_iterator(own_file, Some(Tid(std::process::id())))
            .map_err(failed("link", OWN_FILE.0))?;
        let mut inquiry = Self {
            wanted: maps::own_array(ebpf, "WANTED")?,
            asked: Wanted::default(),
            thread,
            own_file,
            knows_calls: true,
            buffer: Vec::with_capacity(2 * BUFFER_BYTES),
        };
        inquiry.knows_calls = inquiry.sees_own_call()?;
        Ok(inquiry)
    }

    /// Whether it is known which system calls threads are in.
    pub fn knows_calls(&self) -> bool {
        self.knows_calls
    }

    /// Looks at this thread, which is just then in the call that reads the iterator.
    fn sees_own_call(&mut self) -> Result<bool, Error> {
        let own = Tid(nix::unistd::gettid().as_raw().cast_unsigned());
        let expected = [self.buffer.as_ptr() as u64, BUFFER_BYTES as u64];
        let record = self.thread(own)?;
        Ok(record.is_some_and(|it| {
            it.call == libc::SYS_read.cast_unsigned() && it.arguments == expected
        }))
    }

    /// As [`thread`].
    pub fn thread(&mut self, tid: Tid) -> Result<Option<ThreadRecord>, Error> {
        self.ask(Wanted {
            thread: tid,
            ..self.asked
        })?;
        let failed = |step| {
            move |source| Error::Failed {
                step,
                program: THREAD,
                source,
            }
        };
        let link = link_iterator(self.thread.as_fd(), Some(tid)).map_err(failed("link"))?;
        read(link.as_fd(), &mut self.buffer).map_err(failed("read"))?;
        let mut found = pick_thread(&self.buffer, tid);
        if let Some(record) = &mut found
            && !self.knows_calls
        {
            record.call = ThreadRecord::NO_CALL;
        }
        Ok(found)
    }

    /// As [`own_file`].
    pub fn own_file(&mut self, file: BorrowedFd<'_>) -> Result<Option<FileRecord>, Error> {
        self.ask(Wanted {
            descriptor: file.as_raw_fd() as u32,
            ..self.asked
        })?;
        read(self.own_file.as_fd(), &mut self.buffer).map_err(|source| Error::Failed {
            step: "read",
            program: OWN_FILE.0,
            source,
        })?;
        Ok(pick_file(&self.buffer, file))
    }

    fn ask(&mut self, wanted: Wanted) -> Result<(), Error> {
        if self.asked == wanted {
            return Ok(());
        }
        self.wanted
            .set(Asker::Gate as u32, wanted, 0)
            .map_err(|source| maps::Error::Map {
                action: "write to",
                table: "WANTED",
                source,
            })?;
        self.asked = wanted;
        Ok(())
    }
}

fn pick_thread(found: &[u8], tid: Tid) -> Option<ThreadRecord> {
    // SAFETY: every bit pattern of the record's integers is a value.
    unsafe { records::<ThreadRecord>(found) }.find(|it| it.tid == tid)
}

fn pick_file(found: &[u8], file: BorrowedFd<'_>) -> Option<FileRecord> {
    let descriptor = file.as_raw_fd() as u32;
    // SAFETY: as above.
    unsafe { records::<FileRecord>(found) }.find(|it| it.descriptor == descriptor)
}

fn program<'a>(ebpf: &'a Ebpf, name: &'static str) -> Result<BorrowedFd<'a>, Error> {
    let Some(Program::Iter(program)) = ebpf.program(name) else {
        return Err(Error::NotLoaded(name));
    };
    let program: &Iter = program;
    match program.fd() {
        Ok(program) => Ok(program.as_fd()),
        Err(_) => Err(Error::NotLoaded(name)),
    }
}

/// Runs an iterator to its end.
fn run(program: BorrowedFd<'_>, name: &'static str, thread: Option<Tid>) -> Result<Vec<u8>, Error> {
    let mut found = Vec::new();
    link_iterator(program, thread)
        .and_then(|link| read(link.as_fd(), &mut found))
        .map_err(|source| Error::Failed {
            step: "run",
            program: name,
            source,
        })?;
    Ok(found)
}

fn read(link: BorrowedFd<'_>, into: &mut Vec<u8>) -> io::Result<()> {
    into.clear();
    let mut file = File::from(start_iterator(link)?);
    loop {
        let before = into.len();
        into.resize(before + BUFFER_BYTES, 0);
        let read = file.read(&mut into[before..]);
        into.truncate(before + read.as_ref().map_or(0, |count| *count));
        match read {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            // The kernel pauses when it has looked at a great many without a word.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) => {}
            Err(error) => return Err(error),
        }
    }
}

/// The records that an iterator wrote one after the other.
///
/// # Safety
///
/// Every bit pattern is a valid `T`.
unsafe fn records<T: Copy>(bytes: &[u8]) -> impl Iterator<Item = T> {
    bytes.chunks_exact(size_of::<T>()).map(|record| {
        // SAFETY: long enough; unaligned is allowed; any bits are a `T`, by the caller.
        unsafe { record.as_ptr().cast::<T>().read_unaligned() }
    })
}
