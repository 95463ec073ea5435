//! The decision as the kernel takes it, on any facts: program `replay`, run by `BPF_PROG_TEST_RUN`.
//! Nothing is attached, and the tables are its own.

use aya::programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use enforcer_common::layout::Offsets;
use enforcer_common::replay::{CASE_OFFSET, Case, VERDICT_OFFSET};
use enforcer_common::verdict::Verdict;

use super::load;
use super::maps::Maps;

/// The object with the decision alone, as built with this daemon.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/replay"));

const PROGRAM: &str = "replay";

const PACKET_BYTES: usize = VERDICT_OFFSET + size_of::<Verdict>();

/// Why a case was not decided.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program could not be loaded or found.
    #[error(transparent)]
    Load(#[from] load::Error),
    /// The kernel did not run the program.
    #[error("cannot run program `{PROGRAM}`")]
    Run(#[source] ProgramError),
    /// The program could not read the case or write the verdict.
    #[error("program `{PROGRAM}` returned {0} instead of 0")]
    Returned(i32),
    /// The packet came back in another size.
    #[error("program `{PROGRAM}` gave back {0} bytes instead of {PACKET_BYTES}")]
    Size(u32),
}

/// The loaded program, with tables of its own.
pub struct Replay(Ebpf);

impl Replay {
    /// Loads the program. Its tables are empty.
    pub fn load() -> Result<Self, Error> {
        let mut ebpf = EbpfLoader::new()
            // It gathers no facts by itself.
            .override_global("OFFSETS", &Offsets::default(), false)
            .load(OBJECT)
            .map_err(|error| load::Error::Object(Box::new(error)))?;
        classifier(&mut ebpf)?.load().map_err(refused("loading"))?;
        Ok(Self(ebpf))
    }

    /// The tables that it decides by.
    pub fn maps(&mut self) -> Maps<'_> {
        Maps(&mut self.0)
    }

    /// What the kernel says about `case`.
    pub fn decide(&mut self, case: &Case) -> Result<Verdict, Error> {
        let mut packet = [0; PACKET_BYTES];
        packet[CASE_OFFSET..VERDICT_OFFSET].copy_from_slice(bytes(case));
        // So that a verdict that was not written is not taken for one.
        packet[VERDICT_OFFSET..].fill(0xff);
        let mut answer = [0; PACKET_BYTES];
        let result = classifier(&mut self.0)?
            .test_run(TestRunOptions {
                data_in: Some(&packet),
                data_out: Some(&mut answer),
                ..TestRunOptions::default()
            })
            .map_err(Error::Run)?;
        if result.return_value != 0 {
            return Err(Error::Returned(result.return_value.cast_signed()));
        }
        if result.data_size_out as usize != PACKET_BYTES {
            return Err(Error::Size(result.data_size_out));
        }
        let mut word = [0; size_of::<Verdict>()];
        word.copy_from_slice(&answer[VERDICT_OFFSET..]);
        Ok(Verdict(u64::from_ne_bytes(word)))
    }
}

fn classifier(ebpf: &mut Ebpf) -> Result<&mut SchedClassifier, load::Error> {
    ebpf.program_mut(PROGRAM)
        .ok_or_else(|| load::Error::Missing(PROGRAM.to_owned()))?
        .try_into()
        .map_err(refused("finding"))
}

fn refused(step: &'static str) -> impl FnOnce(ProgramError) -> load::Error {
    move |source| load::Error::Program {
        program: PROGRAM.to_owned(),
        step,
        source: Box::new(source),
    }
}

/// The case as the program reads it.
fn bytes(case: &Case) -> &[u8] {
    // SAFETY: a `repr(C)` type of integers whose sizes add up to its own, so it has no padding.
    unsafe { core::slice::from_raw_parts(core::ptr::from_ref(case).cast(), size_of::<Case>()) }
}
