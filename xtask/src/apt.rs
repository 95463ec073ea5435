//! Debian's package lists and downloads, in a private state directory: the machine's own apt
//! configuration is read (for the mirrors it uses) and never changed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail};

use crate::cmd;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The suites that together have every promised kernel.
const SUITES: [&str; 4] = ["bullseye", "bookworm", "trixie", "trixie-backports"];
/// The oldest suite gets its kernels from the security mirror only.
const SECURITY_SUITES: [&str; 1] = ["bullseye-security"];
/// Downloads fail when the mirror has moved on, and then lists are fetched again anyway.
const FRESH: Duration = Duration::from_secs(7 * 24 * 3600);

/// A private apt.
pub struct Apt {
    dir: PathBuf,
}

/// The mirrors that the machine itself uses for Debian.
#[derive(Debug, PartialEq)]
pub struct Mirrors {
    main: String,
    security: Option<String>,
}

impl Mirrors {
    /// Reads the machine's apt configuration.
    pub fn of_this_machine() -> Result<Self> {
        let format = "$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI)";
        let targets = cmd::capture(Command::new("apt-get").args([
            "indextargets",
            "--format",
            format,
            "Created-By: Packages",
        ]))?;
        Self::parse(&targets).context(
            "this machine's apt knows no Debian repository: run `apt-get update` if it is Debian, \
             else give a kernel image with `--kernel PATH`",
        )
    }

    fn parse(targets: &str) -> Option<Self> {
        let find = |label: &str| {
            targets.lines().find_map(|line| {
                let fields: Vec<&str> = line.split('|').collect();
                match fields[..] {
                    ["Debian", l, "main", uri] if l == label => Some(uri.to_owned()),
                    _ => None,
                }
            })
        };
        Some(Self {
            main: find("Debian")?,
            security: find("Debian-Security"),
        })
    }

    fn sources(&self) -> String {
        let main = SUITES.iter().map(|suite| (&self.main, suite));
        let security = self
            .security
            .iter()
            .flat_map(|uri| SECURITY_SUITES.iter().map(move |suite| (uri, suite)));
        main.chain(security)
            .map(|(uri, suite)| {
                format!("deb [arch=amd64 signed-by={KEYRING}] {uri} {suite} main\n")
            })
            .collect()
    }
}

impl Apt {
    /// Opens the private apt in `dir`, creating it if need be.
    pub fn open(dir: PathBuf) -> Result<Self> {
        for program in ["apt-get", "apt-cache", "dpkg-deb"] {
            cmd::which(program).with_context(|| {
                format!(
                    "`{program}` is not here: kernels are fetched from Debian; elsewhere give a \
                     kernel image with `--kernel PATH`"
                )
            })?;
        }
        let mirrors = Mirrors::of_this_machine()?;
        let apt = Self { dir };
        for sub in ["lists/partial", "cache/archives/partial"] {
            let path = apt.dir.join(sub);
            fs::create_dir_all(&path)
                .with_context(|| format!("cannot create {}", path.display()))?;
        }
        apt.write("status", "")?;
        apt.write("sources.list", &mirrors.sources())?;
        let dir = apt.dir.display();
        apt.write(
            "apt.conf",
            &format!(
                r#"Dir::State "{dir}";
Dir::State::status "{dir}/status";
Dir::State::Lists "{dir}/lists";
Dir::Cache "{dir}/cache";
Dir::Etc::sourcelist "{dir}/sources.list";
Dir::Etc::sourceparts "/dev/null";
APT::Architecture "amd64";
APT::Architectures "amd64";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::Retries "3";
"#
            ),
        )?;
        Ok(apt)
    }

    fn write(&self, name: &str, contents: &str) -> Result<()> {
        let path = self.dir.join(name);
        fs::write(&path, contents).with_context(|| format!("cannot write {}", path.display()))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-q").arg("-c").arg(self.dir.join("apt.conf"));
        command
    }

    fn stamp(&self) -> PathBuf {
        self.dir.join("updated")
    }

    /// Whether the lists were fetched lately.
    pub fn is_fresh(&self) -> bool {
        fs::metadata(self.stamp())
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|time| SystemTime::now().duration_since(time).ok())
            .is_some_and(|age| age < FRESH)
    }

    /// Fetches the lists. What could be fetched is kept even if some suite could not.
    pub fn update(&self) -> Result<()> {
        eprintln!("xtask: fetching Debian's package lists");
        cmd::capture(self.command("apt-get").arg("update"))?;
        self.write("updated", "")
    }

    /// Names of packages that start with `prefix`.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let names = cmd::capture(self.command("apt-cache").args(["pkgnames", prefix]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Downloads a package into the directory `to` and unpacks it there. apt checks the signed hash.
    pub fn unpack(&self, package: &str, to: &Path) -> Result<()> {
        eprintln!("xtask: downloading {package}");
        cmd::capture(
            self.command("apt-get")
                .args(["download", package])
                .current_dir(to),
        )?;
        let deb = fs::read_dir(to)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("`apt-get download {package}` left no .deb behind"))?;
        cmd::capture(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(to))?;
        fs::remove_file(&deb).with_context(|| format!("cannot remove {}", deb.display()))
    }
}

/// Whether the machine's own lists name a Debian mirror; they do not in a container image that dropped them.
pub fn check_lists() -> Result<()> {
    if cmd::which("apt-get").is_none() {
        bail!("`apt-get` is not here");
    }
    Mirrors::of_this_machine().map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_debians_own() {
        let targets = "Other|Debian|main|http://other.example/\n\
                       Debian|Debian|contrib|http://wrong.example/\n\
                       Debian|Debian|main|http://mirror.example/debian/\n\
                       Debian|Debian-Security|main|http://mirror.example/security/\n";
        let mirrors = Mirrors::parse(targets).expect("found");
        assert_eq!(mirrors.main, "http://mirror.example/debian/");
        let sources = mirrors.sources();
        assert!(sources.contains("http://mirror.example/debian/ trixie-backports main"));
        assert!(sources.contains("http://mirror.example/security/ bullseye-security main"));
        assert_eq!(
            Mirrors::parse("Ubuntu|Ubuntu|main|http://mirror.example/\n"),
            None
        );
    }
}
