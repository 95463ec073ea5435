//! Where the running kernel keeps its struct members, read from its BTF.
//!
//! Format: <https://docs.kernel.org/bpf/btf.html>. Only what is needed to find members by name, those of
//! anonymous structs and unions included.

use std::collections::HashMap;
use std::path::Path;

use aya::Endianness;

use enforcer_common::layout::Offsets;

/// The running kernel's BTF.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Why offsets could not be found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error(
        "cannot read the kernel's type information at {path}; a kernel with CONFIG_DEBUG_INFO_BTF=y has it"
    )]
    Io {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The data is not BTF as we know it.
    #[error("BTF is malformed at byte {offset}: {what}")]
    Malformed {
        /// Where.
        offset: usize,
        /// What was wrong.
        what: &'static str,
    },
    /// aya cannot read it.
    #[error("cannot use the kernel's type information at {VMLINUX}")]
    Functions(#[source] Box<aya::BtfError>),
    /// The kernel has no such struct.
    #[error("this kernel has no `struct {structure}`, which the programs read")]
    NoStruct {
        /// The struct's name.
        structure: &'static str,
    },
    /// The struct has no such member.
    #[error("this kernel's `struct {structure}` has no member `{member}`, which the programs read")]
    NoMember {
        /// The struct's name.
        structure: &'static str,
        /// The member's names that were tried.
        member: String,
    },
}

/// What loading the programs needs of the running kernel's BTF. It is megabytes, and read once for all of them.
pub struct Types {
    /// Where the members are that the programs read.
    pub offsets: Offsets,
    /// By what aya finds the functions that they are attached to.
    pub functions: aya::Btf,
}

impl Types {
    /// Reads it.
    pub fn read() -> Result<Self, Error> {
        let data = std::fs::read(Path::new(VMLINUX)).map_err(|source| Error::Io {
            path: VMLINUX.to_owned(),
            source,
        })?;
        Ok(Self {
            offsets: offsets_in(&data)?,
            functions: aya::Btf::parse(&data, Endianness::default())
                .map_err(|error| Error::Functions(Box::new(error)))?,
        })
    }
}

/// Finds every offset the programs need in BTF data.
pub fn offsets_in(data: &[u8]) -> Result<Offsets, Error> {
    let btf = Btf::parse(data)?;
    let mut values = Vec::with_capacity(Offsets::MEMBERS.len());
    for (structure, names) in Offsets::MEMBERS {
        values.push(btf.offset(structure, names)?);
    }
    Offsets::from_slice(&values).ok_or(Error::Malformed {
        offset: 0,
        what: "the list of members does not match",
    })
}

const STRUCT: u32 = 4;
const UNION: u32 = 5;
const HEADER_BYTES: usize = 24;

/// A struct or union: its members' names, types and bit offsets.
struct Composite<'a> {
    members: Vec<(&'a [u8], u32, u32)>,
}

struct Btf<'a> {
    composites: HashMap<u32, Composite<'a>>,
    structs_by_name: HashMap<&'a [u8], u32>,
}

impl<'a> Btf<'a> {
    fn parse(data: &'a [u8]) -> Result<Self, Error> {
        let reader = Reader { data };
        if reader.u16(0)? != 0xeb9f {
            return Err(Error::Malformed {
                offset: 0,
                what: "no BTF magic number",
            });
        }
        let header = reader.u32(4)? as usize;
        if header < HEADER_BYTES {
            return Err(Error::Malformed {
                offset: 4,
                what: "the header is too short",
            });
        }
        let types = header + reader.u32(8)? as usize;
        let types_end = types + reader.u32(12)? as usize;
        let strings = header + reader.u32(16)? as usize;
        let mut btf = Self {
            composites: HashMap::new(),
            structs_by_name: HashMap::new(),
        };
        let mut at = types;
        let mut id = 0;
        while at < types_end {
            id += 1;
            let name = reader.u32(at)? as usize;
            let info = reader.u32(at + 4)?;
            let count = (info & 0xffff) as usize;
            let kind = info >> 24 & 0x1f;
            let bitfields = info >> 31 == 1;
            at += 12;
            if kind == STRUCT || kind == UNION {
                let mut members = Vec::with_capacity(count);
                for index in 0..count {
                    let member = at + 12 * index;
                    let offset = reader.u32(member + 8)?;
                    members.push((
                        reader.string(strings, reader.u32(member)? as usize)?,
                        reader.u32(member + 4)?,
                        if bitfields {
                            offset & 0xff_ffff
                        } else {
                            offset
                        },
                    ));
                }
                let name = reader.string(strings, name)?;
                if kind == STRUCT && !name.is_empty() {
                    btf.structs_by_name.entry(name).or_insert(id);
                }
                btf.composites.insert(id, Composite { members });
            }
            at += extra_bytes(kind, count).ok_or(Error::Malformed {
                offset: at,
                what: "a kind of type that is not known",
            })?;
        }
        Ok(btf)
    }

    fn offset(&self, structure: &'static str, names: &[&str]) -> Result<u64, Error> {
        let id = self
            .structs_by_name
            .get(structure.as_bytes())
            .ok_or(Error::NoStruct { structure })?;
        names
            .iter()
            .find_map(|name| {
                let (name, add) = match name.split_once('+') {
                    Some((name, add)) => (name, add.parse().ok()?),
                    None => (*name, 0),
                };
                Some(self.member(*id, name.as_bytes(), 0)? + add)
            })
            .ok_or_else(|| Error::NoMember {
                structure,
                member: names.join("` or `"),
            })
    }

    /// Byte offset of a member, searched in anonymous members too.
    fn member(&self, id: u32, name: &[u8], depth: u32) -> Option<u64> {
        // The C language nests no deeper than this in practice; malformed data may refer to itself.
        if depth > 16 {
            return None;
        }
        self.composites.get(&id)?.members.iter().find_map(|member| {
            let (member_name, type_id, bits) = *member;
            let here = u64::from(bits) / 8;
            if member_name == name {
                Some(here)
            } else if member_name.is_empty() {
                Some(here + self.member(type_id, name, depth + 1)?)
            } else {
                None
            }
        })
    }
}

/// Bytes that follow a type's common part.
fn extra_bytes(kind: u32, count: usize) -> Option<usize> {
    Some(match kind {
        1 | 14 | 17 => 4,
        2 | 7..=12 | 16 | 18 => 0,
        3 => 12,
        STRUCT | UNION | 15 | 19 => 12 * count,
        6 | 13 => 8 * count,
        _ => return None,
    })
}

struct Reader<'a> {
    data: &'a [u8],
}

impl<'a> Reader<'a> {
    fn bytes<const N: usize>(&self, offset: usize) -> Result<[u8; N], Error> {
        self.data
            .get(offset..)
            .and_then(|rest| rest.first_chunk())
            .copied()
            .ok_or(Error::Malformed {
                offset,
                what: "the data ends too early",
            })
    }

    fn u16(&self, offset: usize) -> Result<u16, Error> {
        Ok(u16::from_ne_bytes(self.bytes(offset)?))
    }

    fn u32(&self, offset: usize) -> Result<u32, Error> {
        Ok(u32::from_ne_bytes(self.bytes(offset)?))
    }

    fn string(&self, section: usize, offset: usize) -> Result<&'a [u8], Error> {
        self.data
            .get(section + offset..)
            .and_then(|rest| rest.split(|byte| *byte == 0).next())
            .ok_or(Error::Malformed {
                offset: section + offset,
                what: "a name lies outside the data",
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A struct `outer { int a; union { int b; struct { int c; int d; }; }; }`, as a compiler emits it.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0outer\0a\0b\0c\0d\0";
        let name = |text: &str| {
            let needle = format!("\0{text}\0");
            let at = strings
                .windows(needle.len())
                .position(|window| window == needle.as_bytes());
            at.map_or(0, |at| at as u32 + 1)
        };
        let kind = |kind: u32, count: u32| kind << 24 | count;
        let types: Vec<u32> = [
            vec![name("int"), kind(1, 0), 4, 32],
            vec![0, kind(STRUCT, 2), 8, name("c"), 1, 0, name("d"), 1, 32],
            vec![0, kind(UNION, 2), 8, name("b"), 1, 0, 0, 2, 0],
            vec![
                name("outer"),
                kind(STRUCT, 2),
                12,
                name("a"),
                1,
                0,
                0,
                3,
                32,
            ],
        ]
        .concat();
        let type_bytes = types.len() as u32 * 4;
        let mut data = Vec::new();
        data.extend(0xeb9f_u16.to_ne_bytes());
        data.extend([1, 0]);
        for word in [24, 0, type_bytes, type_bytes, strings.len() as u32] {
            data.extend(word.to_ne_bytes());
        }
        for word in types {
            data.extend(word.to_ne_bytes());
        }
        data.extend(strings);
        data
    }

    #[test]
    fn members_of_anonymous_unions_are_found() {
        let data = sample();
        let btf = Btf::parse(&data).expect("the sample parses");
        for (names, expected) in [
            (&["a"][..], 0),
            (&["b"], 4),
            (&["c"], 4),
            (&["d"], 8),
            (&["missing", "d"], 8),
            (&["d+8"], 16),
        ] {
            assert_eq!(btf.offset("outer", names).expect("found"), expected);
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let data = sample();
        let btf = Btf::parse(&data).expect("the sample parses");
        let error = btf
            .offset("outer", &["x", "y"])
            .expect_err("no such member");
        assert_eq!(
            error.to_string(),
            "this kernel's `struct outer` has no member `x` or `y`, which the programs read"
        );
        assert!(matches!(
            btf.offset("inner", &["a"]),
            Err(Error::NoStruct { structure: "inner" })
        ));
    }

    #[test]
    fn truncated_data_is_an_error_and_no_panic() {
        let data = sample();
        for end in 0..data.len() {
            let _ = Btf::parse(&data[..end]).map(|btf| btf.offset("outer", &["d"]));
        }
    }
}
