//! Finds the kernel to boot: a Debian cloud kernel, fetched once and cached, or any image given by path.

use std::{
    fmt,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    str::FromStr,
};

use anyhow::{Context as _, Result, bail};

use crate::{apt::Apt, cmd, paths};

const SUFFIX: &str = "-cloud-amd64";

/// Which kernel was asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Wanted {
    /// The latest of a series, as in `6.12`.
    Series(u64, u64),
    /// The highest version that Debian has.
    Newest,
    /// An image file.
    Path(PathBuf),
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "newest" {
            return Ok(Self::Newest);
        }
        if text.contains('/') || Path::new(text).is_file() {
            return Ok(Self::Path(text.into()));
        }
        let series = text
            .split_once('.')
            .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        series
            .map(|(major, minor)| Self::Series(major, minor))
            .ok_or_else(|| {
                format!("`{text}` is neither a series such as 6.12, nor `newest`, nor the path of a kernel image")
            })
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Series(major, minor) => write!(f, "{major}.{minor}"),
            Self::Newest => f.write_str("newest"),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

/// A kernel ready to boot.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// What `uname -r` will say.
    pub release: String,
    /// The image.
    pub image: PathBuf,
    /// `lib/modules/RELEASE`, if there are modules.
    pub modules: Option<PathBuf>,
}

impl Kernel {
    /// Whether the release is older than the given series.
    pub fn is_before(&self, major: u64, minor: u64) -> bool {
        series(&self.release).is_some_and(|series| series < (major, minor))
    }
}

/// Finds the kernel, downloading it if it is not in the cache.
pub fn get(wanted: &Wanted) -> Result<Kernel> {
    if let Wanted::Path(path) = wanted {
        return from_path(path);
    }
    let dir = paths::cache()?.join("kernels");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    // Two guests may start at once; one of them downloads, the other waits and finds it done.
    let lock_path = dir.join(".lock");
    let lock = File::create(&lock_path)
        .with_context(|| format!("cannot create {}", lock_path.display()))?;
    lock.lock()
        .with_context(|| format!("cannot lock {}", lock_path.display()))?;

    let cached = cached(&dir);
    if let Wanted::Series(major, minor) = wanted
        && let Some(release) = highest(
            cached
                .iter()
                .filter(|r| series(r) == Some((*major, *minor))),
        )
    {
        return from_cache(&dir, release);
    }
    let release = match fetch(wanted, &dir) {
        Ok(release) => release,
        Err(error) => {
            let Some(release) = choose(&cached, wanted) else {
                return Err(error.context(format!("no kernel for `{wanted}`")));
            };
            eprintln!(
                "xtask: using {release} from the cache, since Debian could not be asked: {error:#}"
            );
            release.to_owned()
        }
    };
    from_cache(&dir, &release)
}

fn fetch(wanted: &Wanted, dir: &Path) -> Result<String> {
    let apt = Apt::open(paths::cache()?.join("apt"))?;
    if !apt.is_fresh()
        && let Err(error) = apt.update()
    {
        eprintln!("xtask: going on with the package lists that there are: {error:#}");
    }
    match fetch_listed(&apt, wanted, dir) {
        // The mirror drops old kernels when new ones come, so a list goes stale at any moment.
        Err(error) if apt.is_fresh() => {
            eprintln!("xtask: trying again with new package lists: {error:#}");
            apt.update()?;
            fetch_listed(&apt, wanted, dir)
        }
        result => result,
    }
}

fn fetch_listed(apt: &Apt, wanted: &Wanted, dir: &Path) -> Result<String> {
    let names = apt.names("linux-")?;
    let bootable = bootable(&names);
    let release = choose(&bootable, wanted)
        .with_context(|| format!("Debian's lists have no cloud kernel for `{wanted}`"))?
        .to_owned();
    if !dir.join(&release).is_dir() {
        let scratch = dir.join(format!(".fetching-{}", std::process::id()));
        fs::create_dir_all(&scratch)
            .with_context(|| format!("cannot create {}", scratch.display()))?;
        let result = download(apt, &names, &release, &scratch, &dir.join(&release));
        // Left over only if it failed; the error of interest is the download's.
        let _ = fs::remove_dir_all(&scratch);
        result.with_context(|| format!("cannot fetch the kernel {release}"))?;
    }
    Ok(release)
}

fn download(apt: &Apt, names: &[String], release: &str, scratch: &Path, to: &Path) -> Result<()> {
    let unpacked = scratch.join("unpacked");
    let kept = scratch.join("kept");
    fs::create_dir_all(&unpacked)?;
    fs::create_dir_all(kept.join("lib/modules"))?;
    for package in packages(names, release) {
        apt.unpack(&package, &unpacked)?;
    }
    let image = [
        format!("boot/vmlinuz-{release}"),
        format!("usr/lib/modules/{release}/vmlinuz"),
    ];
    let image = first_existing(&unpacked, &image)
        .with_context(|| format!("the packages hold none of {}", image.join(", ")))?;
    fs::rename(image, kept.join("vmlinuz"))?;
    let modules = [
        format!("usr/lib/modules/{release}"),
        format!("lib/modules/{release}"),
    ];
    let modules = first_existing(&unpacked, &modules)
        .with_context(|| format!("the packages hold none of {}", modules.join(", ")))?;
    fs::rename(modules, kept.join("lib/modules").join(release))?;
    cmd::capture(
        Command::new(cmd::need("depmod")?)
            .arg("-b")
            .arg(&kept)
            .arg(release),
    )?;
    fs::rename(&kept, to).with_context(|| format!("cannot move the kernel to {}", to.display()))
}

fn first_existing(base: &Path, candidates: &[String]) -> Option<PathBuf> {
    candidates
        .iter()
        .map(|candidate| base.join(candidate))
        .find(|path| path.exists())
}

fn cached(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.path().join("vmlinuz").is_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn from_cache(dir: &Path, release: &str) -> Result<Kernel> {
    let dir = dir.join(release);
    Ok(Kernel {
        release: release.to_owned(),
        image: dir.join("vmlinuz"),
        modules: Some(dir.join("lib/modules").join(release)),
    })
}

fn from_path(path: &Path) -> Result<Kernel> {
    let image =
        fs::read(path).with_context(|| format!("cannot read the kernel {}", path.display()))?;
    let release = release_in_image(&image).with_context(|| {
        format!(
            "{} is not an x86 kernel image (bzImage): give the file that a boot loader would load",
            path.display()
        )
    })?;
    let beside = path.parent().unwrap_or(Path::new(".")).join("lib/modules");
    let modules = [beside, "/lib/modules".into()]
        .into_iter()
        .map(|dir| dir.join(&release))
        .find(|dir| dir.join("modules.dep").is_file());
    if modules.is_none() {
        eprintln!(
            "xtask: no modules for {release} beside the image or in /lib/modules: the guest has what is built in"
        );
    }
    Ok(Kernel {
        release,
        image: path.to_owned(),
        modules,
    })
}

/// The release in the boot header: at 0x20e stands the offset, less 0x200, of a text that starts with it.
fn release_in_image(image: &[u8]) -> Option<String> {
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let offset: [u8; 2] = image.get(0x20e..0x210)?.try_into().ok()?;
    let text = image.get(usize::from(u16::from_le_bytes(offset)) + 0x200..)?;
    let end = text.iter().position(|byte| matches!(byte, b' ' | 0))?;
    String::from_utf8(text[..end].to_vec()).ok()
}

/// The packages that make up a release: one up to 6.18, afterwards two.
fn packages(names: &[String], release: &str) -> Vec<String> {
    let binary = format!("linux-binary-{release}");
    if names.contains(&binary) {
        vec![binary, format!("linux-modules-{release}")]
    } else {
        vec![format!("linux-image-{release}")]
    }
}

/// The releases whose packages are all there. (For some, Debian has the image and lost the modules.)
fn bootable(names: &[String]) -> Vec<String> {
    names
        .iter()
        .filter_map(|name| name.strip_prefix("linux-image-"))
        .filter(|release| release.ends_with(SUFFIX) && has_patch_level(release))
        .filter(|release| packages(names, release).iter().all(|p| names.contains(p)))
        .map(str::to_owned)
        .collect()
}

/// Tells `6.1.0-50-cloud-amd64` from the meta package's `6.1-cloud-amd64`.
fn has_patch_level(release: &str) -> bool {
    let number = release.split(['-', '+']).next().unwrap_or_default();
    number
        .split('.')
        .filter(|part| part.parse::<u64>().is_ok())
        .count()
        == 3
}

/// All numbers in the release, in order: enough to sort Debian's kernels.
fn sort_key(release: &str) -> Vec<u64> {
    let version = release.strip_suffix(SUFFIX).unwrap_or(release);
    version
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

fn series(release: &str) -> Option<(u64, u64)> {
    match sort_key(release)[..] {
        [major, minor, ..] => Some((major, minor)),
        _ => None,
    }
}

fn highest<'a>(releases: impl Iterator<Item = &'a String>) -> Option<&'a str> {
    releases
        .max_by_key(|release| sort_key(release))
        .map(String::as_str)
}

/// The release that serves best. A series that is gone is replaced by the next newer one, else by the
/// next older one, and that is said.
fn choose<'a>(releases: &'a [String], wanted: &Wanted) -> Option<&'a str> {
    let Wanted::Series(major, minor) = wanted else {
        return highest(releases.iter());
    };
    let target = (*major, *minor);
    let there = || releases.iter().filter_map(|release| series(release));
    let nearest = there()
        .filter(|series| *series >= target)
        .min()
        .or_else(|| there().max())?;
    if nearest != target {
        eprintln!(
            "xtask: there is no {wanted} kernel any more: taking the nearest, {}.{}",
            nearest.0, nearest.1
        );
    }
    highest(releases.iter().filter(|r| series(r) == Some(nearest)))
}

/// Fails if the image is not there, as when the cache was half removed.
pub fn check_image(kernel: &Kernel) -> Result<()> {
    if !kernel.image.is_file() {
        bail!(
            "the kernel image {} is gone: remove its directory, it will be fetched again",
            kernel.image.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        [
            "linux-image-5.10.0-9-cloud-amd64",
            "linux-image-5.10.0-46-cloud-amd64",
            "linux-image-5.10.0-46-cloud-amd64-dbg",
            "linux-image-5.10.0-46-rt-amd64",
            "linux-image-6.1-cloud-amd64",
            "linux-image-6.1.0-0.deb11.52-cloud-amd64",
            "linux-image-6.1.0-50-cloud-amd64",
            "linux-image-6.1.0-50-cloud-amd64-unsigned",
            "linux-image-6.12.94+deb13-cloud-amd64",
            "linux-image-6.12.107+deb13-cloud-amd64",
            "linux-image-6.19.6+deb13-cloud-amd64",
            "linux-binary-6.19.6+deb13-cloud-amd64",
            "linux-image-7.3.4+deb13-cloud-amd64",
            "linux-binary-7.3.4+deb13-cloud-amd64",
            "linux-modules-7.3.4+deb13-cloud-amd64",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    #[track_caller]
    fn check(wanted: &str, expected: &str) {
        let bootable = bootable(&names());
        let wanted = wanted.parse().expect("a kernel");
        assert_eq!(choose(&bootable, &wanted), Some(expected));
    }

    #[test]
    fn the_latest_of_a_series_is_chosen() {
        check("5.10", "5.10.0-46-cloud-amd64");
        check("6.1", "6.1.0-50-cloud-amd64");
        check("6.12", "6.12.107+deb13-cloud-amd64");
        check("newest", "7.3.4+deb13-cloud-amd64");
    }

    #[test]
    fn a_series_that_is_gone_is_replaced_by_its_neighbour() {
        check("6.18", "7.3.4+deb13-cloud-amd64");
        check("9.0", "7.3.4+deb13-cloud-amd64");
        assert_eq!(choose(&[], &Wanted::Newest), None);
    }

    #[test]
    fn releases_without_modules_are_not_bootable() {
        assert!(
            !bootable(&names())
                .iter()
                .any(|release| release.starts_with("6.19"))
        );
    }

    #[test]
    fn a_kernel_is_a_series_or_newest_or_a_path() {
        assert_eq!("6.12".parse(), Ok(Wanted::Series(6, 12)));
        assert_eq!("newest".parse(), Ok(Wanted::Newest));
        assert_eq!("./bzImage".parse(), Ok(Wanted::Path("./bzImage".into())));
        assert!("latest".parse::<Wanted>().is_err());
    }

    #[test]
    fn the_boot_header_names_the_release() {
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        image[0x300..0x30b].copy_from_slice(b"6.9.1-x (me");
        assert_eq!(release_in_image(&image).as_deref(), Some("6.9.1-x"));
        assert_eq!(release_in_image(b"\x7fELF"), None);
    }
}
