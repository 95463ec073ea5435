//! The daemon's configuration: `enforcer.yaml` and its drop-ins, then the environment, then flags.
//!
//! What a file sets becomes the default of the flag of that name, so that there is one list of settings, one reading
//! of each value and one order of precedence: clap's.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::builder::Resettable;
use clap::parser::ValueSource;
use clap::{
    Arg, ArgAction, ArgMatches, Args as _, Command, CommandFactory as _, FromArgMatches as _,
};
use enforcer::bundle::{Mistake, Setting, settings};
use serde_json::{Map, Value, json};

use super::{Cli, Output, RunArgs};

/// Where the configuration is, unless `--config` says otherwise.
pub const FILE: &str = "/etc/enforcer/enforcer.yaml";
/// Names the configuration, and can therefore not stand in it.
const CONFIG: &str = "config";

/// `enforcer config ...`
#[derive(clap::Subcommand)]
pub enum ConfigCommand {
    /// Prints the settings that `enforcer run` would have with these flags, here and now; exit code 3 if the
    /// configuration has a mistake
    View {
        /// Also say where each comes from
        #[arg(long)]
        show_origin: bool,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
        #[command(flatten)]
        run: Box<RunArgs>,
    },
}

/// Where a setting comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    BuiltIn,
    /// A file and a line of it.
    File(PathBuf, usize),
    /// A variable of the environment.
    Environment(String),
    /// A flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built-in"),
            Self::File(file, line) => write!(f, "{}:{line}", file.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag --{name}"),
        }
    }
}

/// A setting in effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// One text, or those of a list; none if it is not set.
    pub values: Vec<String>,
    /// Whether it is a list.
    many: bool,
    /// Where it comes from.
    pub origin: Origin,
}

/// All settings, by the names they have in the configuration.
pub type Settings = BTreeMap<String, Effective>;

/// Why the command line with its configuration cannot be followed.
pub enum Failure {
    /// Wrong usage, or a question for help, answered by clap.
    Usage(clap::Error),
    /// What is wrong with the configuration.
    Configuration(String),
}

/// Reads the command line, and for the daemon's settings the configuration too.
pub fn read(words: &[OsString]) -> Result<(Cli, Settings), Failure> {
    let command = Cli::command();
    let first = command.clone().try_get_matches_from(words)?;
    let Some(run) = of_run(&first) else {
        return Ok((Cli::from_arg_matches(&first)?, Settings::new()));
    };
    let file = run.get_one::<PathBuf>(CONFIG).cloned();
    let file = file.unwrap_or_else(|| FILE.into());
    let named = run.value_source(CONFIG) != Some(ValueSource::DefaultValue);
    let shape = RunArgs::augment_args(Command::new("run"));
    let given = load(&file, named, &shape).map_err(Failure::Configuration)?;
    let matches = with_defaults(command, &given).try_get_matches_from(words)?;
    let settings = of_run(&matches)
        .map(|run| effective(&shape, run, &given))
        .unwrap_or_default();
    agree(&settings).map_err(Failure::Configuration)?;
    Ok((Cli::from_arg_matches(&matches)?, settings))
}

impl From<clap::Error> for Failure {
    fn from(error: clap::Error) -> Self {
        Self::Usage(error)
    }
}

/// The part of the command line that has the daemon's settings.
fn of_run(matches: &ArgMatches) -> Option<&ArgMatches> {
    match matches.subcommand()? {
        ("run", run) => Some(run),
        ("config", config) => config.subcommand_matches("view"),
        _ => None,
    }
}

/// What a file sets, and where.
struct Given {
    values: Vec<String>,
    origin: Origin,
}

/// Settings of files, by the ids of their flags.
type AllGiven = BTreeMap<String, Given>;

/// Reads the file, and then those in the directory beside it whose name ends in `.d`, in the order of their names;
/// what a later one sets counts. The file need not be there, unless somebody named it.
fn load(file: &Path, named: bool, shape: &Command) -> Result<AllGiven, String> {
    let failed = |path: &Path, error: &io::Error| {
        format!("cannot read the configuration {}: {error}", path.display())
    };
    let mut mistakes = Vec::new();
    let mut given = AllGiven::new();
    let drop_ins = file.with_extension("d");
    let drop_ins = files_in(&drop_ins).map_err(|error| failed(&drop_ins, &error))?;
    for path in std::iter::once(file.to_owned()).chain(drop_ins) {
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && path == file && !named => {
                continue;
            }
            text => text.map_err(|error| failed(&path, &error))?,
        };
        match settings(&path, &text) {
            Ok(found) => found
                .into_iter()
                .for_each(|setting| take(setting, &path, shape, &mut given, &mut mistakes)),
            Err(found) => mistakes.extend(found.0),
        }
    }
    if mistakes.is_empty() {
        return Ok(given);
    }
    let lines: Vec<String> = mistakes.iter().map(Mistake::to_string).collect();
    Err(format!(
        "the configuration is refused, nothing of it is applied\n{}",
        lines.join("\n")
    ))
}

/// The drop-ins: none if the directory is not there.
fn files_in(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<Vec<_>>>()?;
    // With `..data` and its kin: what kubelet puts beside the files of a ConfigMap.
    files.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.ends_with(".yaml") && !name.starts_with('.')
    });
    files.sort();
    Ok(files)
}

/// Takes a setting, if it is one and its value is good.
fn take(
    setting: Setting,
    file: &Path,
    shape: &Command,
    given: &mut AllGiven,
    mistakes: &mut Vec<Mistake>,
) {
    let Some(flag) = flags(shape).find(|flag| name_of(flag) == setting.name) else {
        mistakes.push(setting.unknown(file, flags(shape).map(name_of)));
        return;
    };
    if let Err(message) = check(flag, &setting.values) {
        mistakes.push(setting.mistake(file, message));
        return;
    }
    let origin = Origin::File(file.to_owned(), setting.line);
    let values = setting.values;
    given.insert(flag.get_id().to_string(), Given { values, origin });
}

/// Every flag that is a setting.
fn flags(shape: &Command) -> impl Iterator<Item = &Arg> {
    shape
        .get_arguments()
        .filter(|flag| flag.get_id() != CONFIG && flag.get_long().is_some())
}

/// A flag's name in the configuration: `ring_bytes` is `ringBytes` there.
fn name_of(flag: &Arg) -> String {
    let mut words = flag.get_id().as_str().split('_');
    let mut name = words.next().unwrap_or_default().to_owned();
    for word in words {
        let (first, rest) = word.split_at(1);
        name.push_str(&first.to_uppercase());
        name.push_str(rest);
    }
    name
}

/// Has clap read the values, as if they were the flag's.
fn check(flag: &Arg, values: &[String]) -> Result<(), String> {
    if values.len() != 1 && !is_list(flag) {
        return Err(format!("got {} values, expected one", values.len()));
    }
    let name = flag.get_long().unwrap_or_default();
    let words = values.iter().map(|value| format!("--{name}={value}"));
    Command::new("enforcer")
        .no_binary_name(true)
        .arg(flag.clone().env(Resettable::Reset))
        .try_get_matches_from(words)
        .map(drop)
        .map_err(|error| {
            let text = error.to_string();
            let lines = text.lines().map(str::trim);
            let lines: Vec<&str> = lines.take_while(|line| !line.is_empty()).collect();
            lines.join(" ").trim_start_matches("error: ").to_owned()
        })
}

fn is_list(flag: &Arg) -> bool {
    matches!(flag.get_action(), ArgAction::Append)
}

/// The command, with what the files set as its defaults.
fn with_defaults(command: Command, given: &AllGiven) -> Command {
    let apply = |mut run: Command| {
        for (id, given) in given {
            run = run.mut_arg(id, |flag| flag.default_values(given.values.clone()));
        }
        run
    };
    command
        .mut_subcommand("run", apply)
        .mut_subcommand("config", |config| config.mut_subcommand("view", apply))
}

fn effective(shape: &Command, run: &ArgMatches, given: &AllGiven) -> Settings {
    let one = |flag: &Arg| {
        let id = flag.get_id().as_str();
        let values = run.get_raw(id).into_iter().flatten();
        let origin = match run.value_source(id) {
            Some(ValueSource::CommandLine) => {
                Origin::Flag(flag.get_long().unwrap_or_default().to_owned())
            }
            Some(ValueSource::EnvVariable) => {
                let name = flag.get_env().unwrap_or_default();
                Origin::Environment(name.to_string_lossy().into_owned())
            }
            _ => given
                .get(id)
                .map_or(Origin::BuiltIn, |it| it.origin.clone()),
        };
        Effective {
            values: values.map(|it| it.to_string_lossy().into_owned()).collect(),
            many: is_list(flag),
            origin,
        }
    };
    flags(shape)
        .map(|flag| (name_of(flag), one(flag)))
        .collect()
}

/// Settings that contradict each other, wherever they come from.
fn agree(settings: &Settings) -> Result<(), String> {
    let (Some(governance), Some(authority), Some(bundle)) = (
        settings.get("governance"),
        settings.get("governanceCa"),
        settings.get("bundle"),
    ) else {
        return Ok(());
    };
    if governance.values.is_empty() {
        return Ok(());
    }
    if bundle.origin != Origin::BuiltIn {
        return Err(format!(
            "both a governance server ({}) and a bundle ({}) are set; give one of them",
            governance.origin, bundle.origin
        ));
    }
    if authority.values.is_empty() {
        return Err(format!(
            "a governance server is set ({}) without its authority; give `governanceCa` too",
            governance.origin
        ));
    }
    Ok(())
}

/// The names of the settings that are not the same in both.
pub fn changed<'a>(was: &'a Settings, is: &'a Settings) -> impl Iterator<Item = &'a str> {
    let differs = |(name, it): &(&'a String, &Effective)| {
        is.get(name.as_str())
            .is_none_or(|new| new.values != it.values)
    };
    was.iter().filter(differs).map(|(name, _)| name.as_str())
}

/// What `config view` prints.
pub fn view(settings: &Settings, show_origin: bool, output: Output) -> Result<String, String> {
    if output == Output::Text {
        let width = settings.keys().map(String::len).max().unwrap_or_default();
        let values: Vec<String> = settings.values().map(|it| it.values.join(",")).collect();
        let widest = values.iter().map(String::len).max().unwrap_or_default();
        let lines = settings.iter().zip(&values).map(|((name, it), value)| {
            let line = if show_origin {
                format!("{name:<width$}  {value:<widest$}  {}", it.origin)
            } else {
                format!("{name:<width$}  {value}")
            };
            format!("{}\n", line.trim_end())
        });
        return Ok(lines.collect());
    }
    let fields = settings.iter().filter_map(|(name, it)| {
        let value = match it.values.as_slice() {
            values if it.many => json!(values),
            [value] => json!(value),
            _ => Value::Null,
        };
        if show_origin {
            let origin = it.origin.to_string();
            return Some((name.clone(), json!({"value": value, "origin": origin})));
        }
        // So that what is printed is a configuration.
        (!value.is_null()).then(|| (name.clone(), value))
    });
    let all = Value::Object(fields.collect::<Map<_, _>>());
    match output {
        Output::Yaml => serde_saphyr::to_string(&all).map_err(|error| error.to_string()),
        _ => Ok(format!("{all:#}\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `enforcer run` with these words and files in a directory of their own; the first file is the main one.
    fn run(words: &[&str], files: &[(&str, &str)]) -> Result<Settings, String> {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, text).expect("written");
        }
        let config = directory.path().join("enforcer.yaml");
        let mut all: Vec<OsString> = vec!["enforcer".into(), "run".into()];
        all.extend(["--config".into(), config.into()]);
        all.extend(words.iter().map(OsString::from));
        let place = format!("{}/", directory.path().display());
        match read(&all) {
            Ok((_, settings)) => Ok(settings),
            Err(Failure::Usage(error)) => Err(error.to_string()),
            Err(Failure::Configuration(text)) => Err(text.replace(&place, "")),
        }
    }

    fn said(settings: &Settings, name: &str) -> String {
        let it = &settings[name];
        let origin = match &it.origin {
            Origin::File(file, line) => {
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                format!("{name}:{line}")
            }
            other => other.to_string(),
        };
        format!("{} {origin}", it.values.join(","))
    }

    #[test]
    fn later_layers_win() {
        let main =
            "tier: lsm\nholders: 100\nringBytes: 8192\nlabels: {zone: a}\nrequireBundle: true\n";
        let files = [
            ("enforcer.yaml", main),
            ("enforcer.d/20-b.yaml", "# more\nholders: 300\n"),
            ("enforcer.d/10-a.yaml", "holders: 200\nnode: n1\n"),
            ("enforcer.d/.hidden.yaml", "holders: nonsense\n"),
            ("enforcer.d/30-c.yaml.bak", "holders: nonsense\n"),
        ];
        let settings = run(&["--ring-bytes", "4096", "--label", "zone=b"], &files).expect("good");
        for (name, expected) in [
            ("tier", "lsm enforcer.yaml:1"),
            ("holders", "300 20-b.yaml:2"),
            ("node", "n1 10-a.yaml:2"),
            ("ringBytes", "4096 flag --ring-bytes"),
            ("labels", "zone=b flag --label"),
            ("requireBundle", "true enforcer.yaml:5"),
            ("socket", "/run/enforcer/enforcer.sock built-in"),
            ("eventLog", " built-in"),
        ] {
            assert_eq!(said(&settings, name), expected, "{name}");
        }
        let settings = run(&["--require-bundle=false"], &files).expect("good");
        assert_eq!(
            said(&settings, "requireBundle"),
            "false flag --require-bundle"
        );
    }

    #[test]
    fn every_mistake_has_its_line_and_nothing_is_applied() {
        let files = [
            ("enforcer.yaml", "tiers: lsm\nholders: 0\nconfig: x\n"),
            ("enforcer.d/a.yaml", "\ntier: strong\nnode: [a, b]\n"),
            ("enforcer.d/c.yaml", "socket:\n"),
            ("enforcer.d/b.yaml", "ringBytes: 5000\nlabels: {zone: ''}\n"),
        ];
        let error = run(&[], &files).expect_err("mistakes");
        for expected in [
            "enforcer.yaml:1:1: tiers: unknown setting; did you mean `tier`?",
            "enforcer.yaml:2:1: holders: invalid value '0'",
            "enforcer.yaml:3:1: config: unknown setting; ",
            "enforcer.d/a.yaml:2:1: tier: ",
            "enforcer.d/a.yaml:3:1: node: got 2 values, expected one",
            "enforcer.d/c.yaml:1:1: socket: ",
            "enforcer.d/b.yaml:1:1: ringBytes: ",
            "enforcer.d/b.yaml:2:1: labels: ",
        ] {
            assert!(error.contains(expected), "no {expected:?} in\n{error}");
        }
    }

    #[test]
    fn what_is_named_must_be_there() {
        let error = run(&[], &[]).expect_err("nothing there");
        assert!(error.contains("cannot read the configuration"), "{error}");
    }

    #[test]
    fn a_server_and_a_bundle_are_one_too_many() {
        let both = [(
            "enforcer.yaml",
            "governance: [https://a:1, https://b:1]\nbundle: /b.yaml\n",
        )];
        let error = run(&[], &both).expect_err("both");
        assert!(error.contains("enforcer.yaml:2"), "{error}");
        let server = [("enforcer.yaml", "governanceCa: /ca.pem\n")];
        let settings = run(&["--governance", "https://a:1,https://b:1"], &server).expect("good");
        assert_eq!(
            said(&settings, "governance"),
            "https://a:1,https://b:1 flag --governance"
        );
        let error = run(&["--governance", "https://a:1"], &[("enforcer.yaml", "")]);
        assert!(error.expect_err("no authority").contains("governanceCa"));
    }

    /// What is printed as YAML is a configuration that says the same.
    #[test]
    fn what_is_printed_can_be_read() {
        let main = "node: '010'\nlabels: {zone: a, rack: '7'}\nholders: 100\nrequireBundle: true\n";
        let settings = run(&[], &[("enforcer.yaml", main)]).expect("good");
        for output in [Output::Yaml, Output::Json] {
            let text = view(&settings, false, output).expect("printed");
            let again = run(&[], &[("enforcer.yaml", &text)]).expect(&text);
            let values = |all: &Settings| -> Vec<_> {
                all.iter()
                    .map(|(name, it)| (name.clone(), it.values.clone()))
                    .collect()
            };
            assert_eq!(values(&again), values(&settings), "{text}");
        }
    }
}
