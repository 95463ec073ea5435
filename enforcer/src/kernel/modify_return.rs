//! Programs of types that aya cannot load: BPF_MODIFY_RETURN on the kernel's `security_*` functions.
//!
//! aya loads the object, its maps and everything else; this loads the programs of the LSM hooks a second
//! time from the same object, over the same maps, as another type.

use std::ffi::c_char;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use aya::Ebpf;
use aya::maps::{Map, MapData};
use aya_obj::btf::{Btf, BtfError, BtfKind};
use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_prog_type};
use aya_obj::{Object, ParseError};

use super::sys::bpf;

/// Both halves of the kernel side's licence, as the kernel wants it.
const LICENSE: &[u8] = b"Dual MIT/GPL\0";
/// How much of the verifier's words is kept when it refuses a program.
const LOG_BYTES: usize = 1 << 20;
/// And how much of that is shown.
const LOG_LINES: usize = 6;

/// Why a program could not be loaded or attached so.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object is not one.
    #[error("the eBPF object cannot be read")]
    Parse(#[from] ParseError),
    /// Its types, or the kernel's, are not as expected.
    #[error("the types of the eBPF object and of this kernel do not fit")]
    Types(#[from] BtfError),
    /// Its references cannot be resolved.
    #[error("the eBPF object cannot be linked")]
    Link(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The kernel refused its types.
    #[error("the kernel refused the object's type information")]
    TypesRefused(#[source] io::Error),
    /// The kernel refused the program.
    #[error("the kernel refused it{log}")]
    Refused {
        /// What the verifier said last, or nothing.
        log: String,
        /// Why.
        source: io::Error,
    },
    /// The kernel did not attach it.
    #[error("it cannot be attached")]
    Attach(#[source] io::Error),
}

/// How a program is attached to a kernel function.
#[derive(Clone, Copy)]
pub enum Attach {
    /// Before it, deciding whether it runs and what it returns.
    ModifyReturn,
    /// Before it, for functions without a result.
    Entry,
}

/// The object, linked to the maps of one that aya loaded.
pub struct Programs {
    object: Object,
    types: Option<OwnedFd>,
}

impl Programs {
    /// Links `object` to the maps of `ebpf`, which was loaded from it.
    pub fn new(object: &[u8], ebpf: &Ebpf) -> Result<Self, Error> {
        let mut object = Object::parse(object)?;
        let types = match aya::features().btf() {
            Some(features) => match object.fixup_and_sanitize_btf(features)? {
                Some(btf) => Some(load_types(&btf.to_bytes())?),
                None => None,
            },
            None => None,
        };
        let maps = std::mem::take(&mut object.maps);
        let mut linked = Vec::new();
        for (name, map) in &maps {
            let made = ebpf.map(name).and_then(data).ok_or_else(|| {
                Error::Link(
                    format!("map `{name}` was not made, or is of a kind unknown here").into(),
                )
            })?;
            linked.push((name.as_str(), made.fd().as_fd().as_raw_fd(), map));
        }
        let text = object
            .functions
            .keys()
            .map(|(section, _)| *section)
            .collect();
        object
            .relocate_maps(linked.into_iter(), &text)
            .map_err(|error| Error::Link(Box::new(error)))?;
        object
            .relocate_calls(&text)
            .map_err(|error| Error::Link(Box::new(error)))?;
        object.sanitize_functions(aya::features());
        Ok(Self { object, types })
    }

    /// Loads `program` for the kernel function `function`.
    pub fn load(
        &self,
        program: &str,
        function: &str,
        attach: Attach,
        kernel: &Btf,
    ) -> Result<OwnedFd, Error> {
        let id = kernel.id_by_type_name_kind(function, BtfKind::Func)?;
        let code = self
            .object
            .programs
            .get(program)
            .and_then(|program| self.object.functions.get(&program.function_key()))
            .ok_or_else(|| {
                Error::Link(format!("the eBPF object has no program `{program}`").into())
            })?;
        // SAFETY: a union of plain numbers, for which zero is "not given".
        let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
        let functions = code.func_info.func_info_bytes();
        let lines = code.line_info.line_info_bytes();
        let mut log = Vec::new();
        // SAFETY: the member that BPF_PROG_LOAD reads.
        let load = unsafe { &mut attr.__bindgen_anon_3 };
        for (to, from) in load.prog_name.iter_mut().zip(program.bytes().take(15)) {
            *to = from as c_char;
        }
        load.prog_type = bpf_prog_type::BPF_PROG_TYPE_TRACING as u32;
        load.expected_attach_type = match attach {
            Attach::ModifyReturn => bpf_attach_type::BPF_MODIFY_RETURN,
            Attach::Entry => bpf_attach_type::BPF_TRACE_FENTRY,
        } as u32;
        load.attach_btf_id = id;
        load.insns = code.instructions.as_ptr() as u64;
        load.insn_cnt = code.instructions.len() as u32;
        load.license = LICENSE.as_ptr() as u64;
        if let Some(types) = &self.types {
            load.prog_btf_fd = types.as_raw_fd() as u32;
            load.func_info = functions.as_ptr() as u64;
            load.func_info_cnt = code.func_info.len() as u32;
            load.func_info_rec_size = code.func_info_rec_size as u32;
            load.line_info = lines.as_ptr() as u64;
            load.line_info_cnt = code.line_info.len() as u32;
            load.line_info_rec_size = code.line_info_rec_size as u32;
        }
        // SAFETY: every pointer above is to memory that outlives the call.
        let first = unsafe { bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr) };
        let Err(source) = first else {
            return first.map_err(|source| Error::Refused {
                log: String::new(),
                source,
            });
        };
        log.resize(LOG_BYTES, 0_u8);
        // SAFETY: as above.
        let load = unsafe { &mut attr.__bindgen_anon_3 };
        load.log_level = 1;
        load.log_buf = log.as_mut_ptr() as u64;
        load.log_size = LOG_BYTES as u32;
        // SAFETY: as above; the kernel writes at most `log_size` bytes into the log.
        if let Ok(program) = unsafe { bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr) } {
            return Ok(program);
        }
        Err(Error::Refused {
            log: last_lines(&log),
            source,
        })
    }
}

/// Attaches a loaded program; it stays so as long as the result is open.
pub fn attach(program: &OwnedFd) -> Result<OwnedFd, Error> {
    // SAFETY: a union of plain numbers.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    attr.raw_tracepoint.prog_fd = program.as_raw_fd() as u32;
    // SAFETY: the command reads only numbers.
    unsafe { bpf(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attr) }.map_err(Error::Attach)
}

fn load_types(types: &[u8]) -> Result<OwnedFd, Error> {
    // SAFETY: a union of plain numbers.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the member that BPF_BTF_LOAD reads.
    let load = unsafe { &mut attr.__bindgen_anon_7 };
    load.btf = types.as_ptr() as u64;
    load.btf_size = types.len() as u32;
    // SAFETY: the types outlive the call.
    unsafe { bpf(bpf_cmd::BPF_BTF_LOAD, &mut attr) }.map_err(Error::TypesRefused)
}

/// What lies behind one of the kinds of map that the object has.
fn data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::RingBuf(data)
        | Map::SkStorage(data) => Some(data),
        _ => None,
    }
}

/// The end of the verifier's log, where it says what it does not like.
fn last_lines(log: &[u8]) -> String {
    let end = log.iter().position(|byte| *byte == 0);
    let text = String::from_utf8_lossy(&log[..end.unwrap_or(log.len())]);
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..]
        .iter()
        .map(|line| format!("\n    {line}"))
        .collect()
}
