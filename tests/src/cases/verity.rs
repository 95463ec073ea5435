//! Programs whose content the kernel vouches for: fs-verity, on a file system that has it.

use std::{
    fs::{self, File},
    os::fd::AsRawFd as _,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use nix::{errno::Errno, mount};

use super::{Scene, cases, standard::DESTINATIONS};
use crate::harness::{Actor, Allowed, Bundle, Refused, copy_program};

cases![the_kernel_vouches_for_a_program];

const PLACE: &str = "/mnt/verity";
const SHA256: u32 = 1;
const BLOCK_BYTES: u32 = 4096;

/// `struct fsverity_enable_arg`.
#[repr(C)]
#[derive(Default)]
struct Enable {
    version: u32,
    algorithm: u32,
    block_bytes: u32,
    salt_and_signature: [u32; 7],
    reserved: [u64; 11],
}

/// `struct fsverity_digest`, with room.
#[repr(C)]
#[derive(Default)]
struct Measured {
    algorithm: u16,
    size: u16,
    digest: [u8; 32],
}

fn run(program: &str, words: &[&str]) -> Result<()> {
    let output = Command::new(program).args(words).output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {words:?} said {said}");
    Ok(())
}

/// Seals a file and returns its digest as `fsverity measure` prints it.
fn seal(path: &str) -> Result<String> {
    let file = File::open(path)?;
    let enable = Enable {
        version: 1,
        algorithm: SHA256,
        block_bytes: BLOCK_BYTES,
        ..Enable::default()
    };
    let mut measured = Measured {
        size: 32,
        ..Measured::default()
    };
    // SAFETY: FS_IOC_ENABLE_VERITY and FS_IOC_MEASURE_VERITY on structs as they want them.
    unsafe {
        let enabled = libc::ioctl(
            file.as_raw_fd(),
            0x4080_6685_u32 as libc::Ioctl,
            &raw const enable,
        );
        Errno::result(enabled).context("cannot seal the program")?;
        let result = libc::ioctl(
            file.as_raw_fd(),
            0xc004_6686_u32 as libc::Ioctl,
            &raw mut measured,
        );
        Errno::result(result).context("cannot measure the program")?;
    }
    let hex: String = measured
        .digest
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(format!("sha256:{hex}"))
}

fn the_kernel_vouches_for_a_program(scene: &mut Scene) -> Result<()> {
    let image = "/tmp/verity.img";
    File::create(image)?.set_len(256 << 20)?;
    run(
        "mke2fs",
        &["-q", "-t", "ext4", "-O", "verity", "-b", "4096", image],
    )?;
    fs::create_dir_all(PLACE)?;
    run("mount", &["-o", "loop", image, PLACE])?;
    let [sealed, open] = ["sealed", "open"].map(|name| format!("{PLACE}/{name}"));
    copy_program(&sealed)?;
    copy_program(&open)?;
    let digest = seal(&sealed)?;
    let bundle = |sealed_digest: &str| {
        let program = |path: &str, digest: &str| {
            format!("executable: {{path: {path}, fsVerity: \"{digest}\"}}")
        };
        Bundle::default()
            .file("key", "/srv/t/key")
            .workload("sealed", &program(&sealed, sealed_digest))
            .workload("open", &program(&open, &digest))
            .entitlement("E-sealed", "sealed", "key", DESTINATIONS)
            .entitlement("E-open", "open", "key", DESTINATIONS)
    };
    scene.on(&bundle(&digest))?;
    let key = "read /srv/t/key";
    scene.check(&Actor::new(&sealed), &[(key, Allowed)])?;
    // The same bytes, for which nobody vouches.
    scene.check(&Actor::new(&open), &[(key, Refused(""))])?;
    scene.on(&bundle(&format!("sha256:{:064x}", 7)))?;
    scene.check(&Actor::new(&sealed), &[(key, Refused(""))])?;
    scene.off()?;
    mount::umount(PLACE).context("cannot unmount")
}
