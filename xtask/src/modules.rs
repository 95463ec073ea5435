//! The few kernel modules that tests need, with what they depend on, as an archive cached per kernel.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::BufWriter,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{cmd, cpio, kernels::Kernel, paths};

/// Modules that the guest has if the kernel has them; the kernel loads most of them by itself when asked
/// for the file system, protocol or device. Names as in file names, with `-` as `_`.
const NAMES: &[&str] = &[
    // File systems: credentials live on all kinds, and some report other identities than others.
    "overlay",
    "loop",
    "ext4",
    "btrfs",
    "xfs",
    "squashfs",
    "fuse",
    "nfs",
    "configfs",
    "isofs",
    "vfat",
    "nls_ascii",
    "nls_iso8859_1",
    "nls_utf8",
    "crc32c_generic",
    "libcrc32c",
    // Devices for networks that lead nowhere.
    "dummy",
    "veth",
    "tun",
    "bridge",
    "ipip",
    "ip_gre",
    "sit",
    "macvlan",
    "ipvlan",
    "vrf",
    "wireguard",
    // Ways out of a machine that are not TCP or UDP.
    "sctp",
    "dccp",
    "dccp_ipv4",
    "dccp_ipv6",
    "vsock",
    "vsock_loopback",
    "tipc",
    "rds",
    "rds_tcp",
    "kcm",
    "smc",
    "l2tp_ip",
    "l2tp_ip6",
    "l2tp_core",
    "af_alg",
    "algif_hash",
    "algif_skcipher",
    "af_key",
    "af_packet",
    "can",
    "can_raw",
    "vcan",
    "x25",
    "ax25",
    "phonet",
    "nfc",
    "bluetooth",
    "llc2",
    "tls",
    // Ways to rewrite packets behind a socket's back.
    "nf_tables",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
    "nft_redir",
    "nft_tproxy",
    "nft_socket",
    "nft_ct",
    "nf_conntrack",
    "xt_socket",
    "sch_ingress",
    "cls_bpf",
    "act_bpf",
    "act_mirred",
    "act_pedit",
    "cls_matchall",
    "ip_tables",
    "iptable_nat",
    "xt_DNAT",
    "xt_REDIRECT",
    "xt_nat",
    "xt_tcpudp",
    "netlink_diag",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "unix_diag",
    "raw_diag",
];

/// The path of an archive with the kernel's modules; none if the kernel has none.
pub fn archive(kernel: &Kernel) -> Result<Option<PathBuf>> {
    let Some(modules) = &kernel.modules else {
        return Ok(None);
    };
    let index = modules.join("modules.dep");
    let metadata = fs::metadata(&index).with_context(|| {
        format!(
            "cannot read {}: run `depmod {}`",
            index.display(),
            kernel.release
        )
    })?;
    let mut hasher = DefaultHasher::new();
    // A kernel built anew by hand keeps its release and changes its index.
    (NAMES, metadata.len(), metadata.modified().ok()).hash(&mut hasher);
    let dir = paths::cache()?.join("modules");
    let archive = dir.join(format!("{}-{:016x}.cpio", kernel.release, hasher.finish()));
    if archive.is_file() {
        return Ok(Some(archive));
    }
    let stage = dir.join(format!(".stage-{}-{}", std::process::id(), kernel.release));
    let built = build(kernel, modules, &index, &stage);
    // The error of interest is the building's.
    let done = built.and_then(|built| {
        fs::rename(&built, &archive).with_context(|| format!("cannot create {}", archive.display()))
    });
    let _ = fs::remove_dir_all(&stage);
    done.with_context(|| format!("cannot gather the modules of {}", kernel.release))?;
    Ok(Some(archive))
}

fn build(kernel: &Kernel, modules: &Path, index: &Path, stage: &Path) -> Result<PathBuf> {
    let text =
        fs::read_to_string(index).with_context(|| format!("cannot read {}", index.display()))?;
    let staged = stage.join("lib/modules").join(&kernel.release);
    for file in with_dependencies(&text, NAMES) {
        let (target, decompressor) = decompressor(&file);
        let target = staged.join(target);
        let source = modules.join(&file);
        fs::create_dir_all(target.parent().unwrap_or(&staged))?;
        match decompressor {
            None => fs::copy(&source, &target).map(|_| ()),
            Some(program) => {
                let out = fs::File::create(&target)?;
                cmd::stream(
                    Command::new(cmd::need(program)?)
                        .arg("-dc")
                        .arg(&source)
                        .stdout(out),
                )?;
                Ok(())
            }
        }
        .with_context(|| format!("cannot copy {}", source.display()))?;
    }
    for file in [
        "modules.builtin",
        "modules.builtin.modinfo",
        "modules.order",
    ] {
        if modules.join(file).is_file() {
            fs::copy(modules.join(file), staged.join(file))?;
        }
    }
    cmd::capture(
        Command::new(cmd::need("depmod")?)
            .arg("-b")
            .arg(stage)
            .arg(&kernel.release),
    )?;
    let path = stage.join("modules.cpio");
    let mut archive = cpio::Archive::new(BufWriter::new(fs::File::create(&path)?));
    archive.dir("lib", 0o755, 0)?;
    archive.tree("lib", &stage.join("lib"))?;
    archive.finish()?;
    Ok(path)
}

/// The file's name without compression, and the program that undoes it: the guest's loader cannot.
fn decompressor(file: &str) -> (&str, Option<&'static str>) {
    for (suffix, program) in [(".xz", "xz"), (".zst", "zstd"), (".gz", "gzip")] {
        if let Some(stem) = file.strip_suffix(suffix) {
            return (stem, Some(program));
        }
    }
    (file, None)
}

/// The files of the named modules and of all that they need, from a `modules.dep`, whose lines already
/// list needs of needs.
fn with_dependencies(index: &str, names: &[&str]) -> BTreeSet<String> {
    let lines: HashMap<String, &str> = index
        .lines()
        .filter_map(|line| Some((module_name(line.split_once(':')?.0), line)))
        .collect();
    names
        .iter()
        .filter_map(|name| lines.get(*name))
        .flat_map(|line| line.split([':', ' ']).filter(|file| !file.is_empty()))
        .map(str::to_owned)
        .collect()
}

fn module_name(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    let stem = base.split(".ko").next().unwrap_or(base);
    stem.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_along() {
        let index = "kernel/net/tls.ko.xz:\n\
                     kernel/net/sctp-x.ko.xz: kernel/lib/crc.ko.xz kernel/net/udp.ko.xz\n\
                     kernel/fs/other.ko:\n";
        let files = with_dependencies(index, &["sctp_x", "absent"]);
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        assert_eq!(
            files,
            [
                "kernel/lib/crc.ko.xz",
                "kernel/net/sctp-x.ko.xz",
                "kernel/net/udp.ko.xz"
            ]
        );
        assert_eq!(decompressor(files[0]), ("kernel/lib/crc.ko", Some("xz")));
        assert_eq!(decompressor("a.ko"), ("a.ko", None));
    }
}
