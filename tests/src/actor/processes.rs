//! Ways to go on as another process or thread.

use std::{
    convert::Infallible,
    env,
    ffi::CString,
    fs,
    os::fd::{AsRawFd as _, OwnedFd},
    process::{self, Command},
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    sched::CloneFlags,
    sys::{
        memfd, ptrace,
        signal::Signal,
        wait::{self, WaitStatus},
    },
    unistd::{self, ForkResult, Pid},
};

use super::{Done, State, Words, places, run};

const STACK_BYTES: usize = 256 * 1024;

/// A child killed by a signal ends its parent's story with this and the signal's number.
const SIGNALLED: u8 = 128;

fn status_of(child: Pid) -> nix::Result<u8> {
    Ok(match wait::waitpid(child, None)? {
        WaitStatus::Exited(_, status) => u8::try_from(status).unwrap_or(2),
        WaitStatus::Signaled(_, signal, _) => SIGNALLED + signal as u8,
        _ => 2,
    })
}

/// Does the steps, and leaves without a look back at what belongs to the parent.
fn run_and_exit(state: State, steps: Vec<String>) -> ! {
    let status = run(state, steps);
    // SAFETY: ends the process at once; the lines are out, since standard output is written unbuffered or by line.
    unsafe { libc::_exit(i32::from(status)) }
}

/// A child.
pub fn fork(state: State, steps: Vec<String>) -> nix::Result<u8> {
    // SAFETY: an actor has no other threads, so its child may do anything.
    match unsafe { unistd::fork()? } {
        ForkResult::Child => run_and_exit(state, steps),
        ForkResult::Parent { child } => status_of(child),
    }
}

/// A grandchild whose parent has gone.
pub fn double_fork(state: State, steps: Vec<String>) -> nix::Result<u8> {
    let (result, teller): (OwnedFd, OwnedFd) = unistd::pipe()?;
    // SAFETY: an actor has no other threads, so its child may do anything.
    if let ForkResult::Parent { child } = unsafe { unistd::fork()? } {
        drop(teller);
        wait::waitpid(child, None)?;
        let mut status = [2];
        unistd::read(result, &mut status)?;
        return Ok(status[0]);
    }
    let parent = unistd::getpid();
    // SAFETY: as above.
    if let ForkResult::Parent { .. } = unsafe { unistd::fork()? } {
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(0) }
    }
    while unistd::getppid() == parent {
        thread::sleep(Duration::from_millis(1));
    }
    let status = run(state, steps);
    unistd::write(teller, &[status])?;
    // SAFETY: ends the process at once.
    unsafe { libc::_exit(i32::from(status)) }
}

/// A second thread.
pub fn thread(state: State, steps: Vec<String>) -> nix::Result<u8> {
    thread::spawn(|| run(state, steps))
        .join()
        .map_err(|_| Errno::ECANCELED)
}

/// A second thread, after the first has ended.
pub fn leaderless(state: State, steps: Vec<String>) -> nix::Result<u8> {
    thread::spawn(|| {
        thread::sleep(Duration::from_millis(100));
        let status = run(state, steps);
        process::exit(i32::from(status))
    });
    // SAFETY: ends this thread only; what is on its stack is not used by the other.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    Err(Errno::ECANCELED)
}

type Given = (State, Vec<String>);

extern "C" fn cloned(given: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `clone` below gives away a box of this type.
    let (state, steps) = *unsafe { Box::from_raw(given.cast::<Given>()) };
    run_and_exit(state, steps)
}

fn clone(flags: CloneFlags, state: State, steps: Vec<String>) -> nix::Result<u8> {
    let mut stack = vec![0_u8; STACK_BYTES];
    let top = stack.as_mut_ptr_range().end;
    let given: *mut Given = Box::into_raw(Box::new((state, steps)));
    // SAFETY: the stack, aligned by its size, outlives the child, which is waited for below while this
    // thread does nothing else; what is given to it is its own. (nix's `clone` would hand it a pointer
    // to a frame that has gone by then.)
    let child = Errno::result(unsafe {
        let top = top.sub(top.addr() % 16);
        libc::clone(
            cloned,
            top.cast(),
            flags.bits() | libc::SIGCHLD,
            given.cast(),
        )
    })?;
    status_of(Pid::from_raw(child))
}

/// A child in our own memory, while we stand still: what `vfork` is.
pub fn vfork(state: State, steps: Vec<String>) -> nix::Result<u8> {
    clone(CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK, state, steps)
}

/// A child in our own memory.
pub fn clone_vm(state: State, steps: Vec<String>) -> nix::Result<u8> {
    clone(CloneFlags::CLONE_VM, state, steps)
}

fn c_strings<'a>(words: impl IntoIterator<Item = &'a String>) -> nix::Result<Vec<CString>> {
    words
        .into_iter()
        .map(|word| CString::new(word.as_str()).map_err(|_| Errno::EINVAL))
        .collect()
}

/// This program's path; not `/proc/self/exe`, since that would be another name to be judged by.
fn own_path() -> nix::Result<String> {
    let path = env::current_exe().map_err(|error| places::errno(&error))?;
    path.into_os_string()
        .into_string()
        .map_err(|_| Errno::EINVAL)
}

/// The command line that does these steps with this program.
fn command_line(program: &str, steps: Vec<String>) -> Vec<String> {
    let mut line = vec![program.to_owned()];
    if program.ends_with("/enforcer-tests") {
        line.push("act".to_owned());
    }
    line.extend(steps);
    line
}

fn replace_by(line: &[String]) -> nix::Result<Infallible> {
    let line = c_strings(line)?;
    let program = line.first().ok_or(Errno::EINVAL)?;
    unistd::execv(program, &line)
}

/// The same program, by `posix_spawn`.
pub fn spawn(_: State, steps: Vec<String>) -> nix::Result<u8> {
    // The standard library uses posix_spawn where nothing but a program and its arguments is asked for.
    let line = command_line(&own_path()?, steps);
    let status = Command::new(&line[0])
        .args(&line[1..])
        .status()
        .map_err(|error| places::errno(&error))?;
    Ok(status
        .code()
        .map_or(2, |code| u8::try_from(code).unwrap_or(2)))
}

/// The same program anew, in the same process.
pub fn exec(_: State, steps: Vec<String>) -> nix::Result<u8> {
    match replace_by(&command_line(&own_path()?, steps))? {}
}

/// Another program, the first word, in the same process.
pub fn exec_as(_: State, mut steps: Vec<String>) -> nix::Result<u8> {
    if steps.is_empty() {
        return Err(Errno::EINVAL);
    }
    let program = steps.remove(0);
    match replace_by(&command_line(&program, steps))? {}
}

/// The same program anew, from a thread that is not the first.
pub fn thread_exec(state: State, steps: Vec<String>) -> nix::Result<u8> {
    thread::spawn(|| exec(state, steps))
        .join()
        .map_err(|_| Errno::ECANCELED)?
}

/// Another program, the first word, in a child that this one traces from before its start.
pub fn exec_traced(state: State, steps: Vec<String>) -> nix::Result<u8> {
    // SAFETY: an actor has no other threads, so its child may do anything.
    let ForkResult::Parent { child } = (unsafe { unistd::fork()? }) else {
        let status = ptrace::traceme().and_then(|()| exec_as(state, steps));
        process::exit(i32::from(status.unwrap_or(2)));
    };
    loop {
        match wait::waitpid(child, None)? {
            WaitStatus::Exited(_, status) => return Ok(u8::try_from(status).unwrap_or(2)),
            // It comes from being traced, and is not for the program.
            WaitStatus::Stopped(_, Signal::SIGTRAP) => ptrace::cont(child, None)?,
            WaitStatus::Stopped(_, signal) => ptrace::cont(child, signal)?,
            _ => return Err(Errno::ECHILD),
        }
    }
}

/// The program anew, under a name that is another's.
pub fn exec_named(_: State, mut steps: Vec<String>) -> nix::Result<u8> {
    if steps.is_empty() {
        return Err(Errno::EINVAL);
    }
    let program = c_strings(&[own_path()?])?;
    match unistd::execv(&program[0], &c_strings(&steps.split_off(0))?)? {}
}

/// The program anew, with this variable, the first word, in its environment.
pub fn exec_with(_: State, mut steps: Vec<String>) -> nix::Result<u8> {
    if steps.is_empty() {
        return Err(Errno::EINVAL);
    }
    let variables = c_strings(&[steps.remove(0)])?;
    let line = c_strings(&command_line(&own_path()?, steps))?;
    match unistd::execve(&line[0], &line, &variables)? {}
}

/// The same, after so many others, the first word.
pub fn exec_crowded(_: State, mut steps: Vec<String>) -> nix::Result<u8> {
    if steps.len() < 2 {
        return Err(Errno::EINVAL);
    }
    let count: u32 = steps.remove(0).parse().map_err(|_| Errno::EINVAL)?;
    let mut variables: Vec<String> = (0..count)
        .map(|number| format!("NOTHING_{number}="))
        .collect();
    variables.push(steps.remove(0));
    let line = c_strings(&command_line(&own_path()?, steps))?;
    match unistd::execve(&line[0], &line, &c_strings(&variables)?)? {}
}

/// The program anew, from a copy that is in no directory.
pub fn exec_memory(_: State, steps: Vec<String>) -> nix::Result<u8> {
    let path = own_path()?;
    let copy = memfd::memfd_create(c"entitled", memfd::MFdFlags::empty())?;
    let program = fs::read(&path).map_err(|error| places::errno(&error))?;
    fs::write(format!("/proc/self/fd/{}", copy.as_raw_fd()), program)
        .map_err(|error| places::errno(&error))?;
    let line = c_strings(&command_line(&path, steps))?;
    match unistd::fexecve::<_, CString, CString>(copy, &line, &[])? {}
}

/// A child born in another cgroup, the first word.
pub fn into_cgroup(state: State, mut steps: Vec<String>) -> nix::Result<u8> {
    const CLONE_INTO_CGROUP: u64 = 1 << 33;
    if steps.is_empty() {
        return Err(Errno::EINVAL);
    }
    let place = format!("/sys/fs/cgroup/{}", steps.remove(0));
    let cgroup = fs::File::open(place).map_err(|error| places::errno(&error))?;
    let arguments = CloneArguments {
        flags: CLONE_INTO_CGROUP,
        cgroup: cgroup.as_raw_fd() as u64,
        ..CloneArguments::default()
    };
    clone3(arguments, state, steps)
}

/// A child with this number, the first word.
pub fn with_number(state: State, mut steps: Vec<String>) -> nix::Result<u8> {
    if steps.is_empty() {
        return Err(Errno::EINVAL);
    }
    let number: i32 = steps.remove(0).parse().map_err(|_| Errno::EINVAL)?;
    let arguments = CloneArguments {
        numbers: (&raw const number).addr() as u64,
        count: 1,
        ..CloneArguments::default()
    };
    clone3(arguments, state, steps)
}

/// `struct clone_args`.
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    before: [u64; 3],
    exit_signal: u64,
    between: [u64; 3],
    numbers: u64,
    count: u64,
    cgroup: u64,
}

fn clone3(arguments: CloneArguments, state: State, steps: Vec<String>) -> nix::Result<u8> {
    let arguments = CloneArguments {
        exit_signal: libc::SIGCHLD as u64,
        ..arguments
    };
    // SAFETY: like a fork, with the arguments as long as said; an actor has no other threads.
    let child = Errno::result(unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<CloneArguments>(),
        )
    })?;
    match child {
        0 => run_and_exit(state, steps),
        child => status_of(Pid::from_raw(child as i32)),
    }
}

/// A child does the next step, which is one word and its argument; we go on. The result is the child's.
pub fn child(state: &mut State, words: &mut Words, flags: CloneFlags) -> nix::Result<Done> {
    let step = vec![words.next()?, words.next()?];
    let kept = std::mem::take(state);
    let status = clone(flags, State::default(), step)?;
    *state = kept;
    match status {
        0 => Ok(Done::default()),
        1 => Err(Errno::EPERM),
        _ => Err(Errno::ECHILD),
    }
}

/// A shell with all the words as its script.
pub fn shell(_: State, steps: Vec<String>) -> nix::Result<u8> {
    let words = ["/bin/sh".to_owned(), "-c".to_owned(), steps.join(" ")];
    match replace_by(&words)? {}
}
