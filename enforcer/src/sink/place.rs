//! A sink as it is asked for: `NAME=URL#OPTION=VALUE&...`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::ValueEnum as _;
use url::Url;

use crate::shape::Shape;

/// Most records in one batch.
const LARGEST: usize = 1000;
/// As many as are handed over at once unless somebody says otherwise.
const USUAL: usize = 100;

/// One sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sink {
    /// Its name: its cursor's too.
    pub name: String,
    /// Where the records go.
    pub place: Place,
    /// In which shape.
    pub shape: Shape,
    /// How many at once, at most.
    pub batch: usize,
    /// Only denials, and what the daemon itself has to tell.
    pub denials: bool,
}

/// Where records go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// `file:///PATH`
    File(PathBuf),
    /// `stdout:`
    Stdout,
    /// `otlp://HOST:4317`, `otlp+tls://HOST:4317`
    Otlp(Remote),
    /// `nats://HOST:4222/SUBJECT`, `nats+tls://...`
    Nats(Remote),
    /// `http://...`, `https://...`
    Webhook(Remote),
    /// `syslog+tcp://HOST:601`, `syslog+tls://HOST:6514`, `syslog+udp://HOST:514`, `syslog+unix:///dev/log`
    Syslog(Syslog),
}

impl Place {
    /// What kind it is.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Stdout => "stdout",
            Self::Otlp(_) => "otlp",
            Self::Nats(_) => "nats",
            Self::Webhook(_) => "webhook",
            Self::Syslog(_) => "syslog",
        }
    }
}

/// Something on the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Its URL, without what is ours.
    pub url: Url,
    /// Whether it is spoken to by TLS.
    pub tls: bool,
    /// A file with the authority of its certificate, PEM; otherwise those that the host trusts.
    pub ca: Option<PathBuf>,
    /// A file with a bearer token, or with the credentials that NATS wants; read anew for each connection.
    pub token: Option<PathBuf>,
}

/// How syslog is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Syslog {
    /// HOST:PORT
    Udp(String),
    /// HOST, PORT, and by TLS
    Tcp(Remote),
    /// A socket, of datagrams or of a stream.
    Unix(PathBuf),
}

impl FromStr for Sink {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, url) = text
            .split_once('=')
            .ok_or_else(|| format!("got `{text}`, expected NAME=URL"))?;
        let is_good = |it: char| it.is_ascii_alphanumeric() || it == '-' || it == '_';
        if name.is_empty() || name.len() > 64 || !name.chars().all(is_good) {
            return Err(format!(
                "the name `{name}`: expected up to 64 letters, digits, `-` and `_`"
            ));
        }
        let url = Url::parse(url).map_err(|error| format!("sink {name}: {url}: {error}"))?;
        sink(name, url).map_err(|reason| format!("sink {name}: {reason}"))
    }
}

#[derive(Default)]
struct Options {
    shape: Option<Shape>,
    batch: Option<usize>,
    denials: bool,
    ca: Option<PathBuf>,
    token: Option<PathBuf>,
}

fn sink(name: &str, mut url: Url) -> Result<Sink, String> {
    let options = options(url.fragment().unwrap_or_default())?;
    url.set_fragment(None);
    let usual = match url.scheme() {
        "http" | "https" => Shape::CloudEvents,
        _ => Shape::Native,
    };
    let Options {
        shape,
        batch,
        denials,
        ..
    } = options;
    Ok(Sink {
        name: name.to_owned(),
        place: place(url, options)?,
        shape: shape.unwrap_or(usual),
        batch: batch.unwrap_or(USUAL),
        denials,
    })
}

fn options(fragment: &str) -> Result<Options, String> {
    let mut options = Options::default();
    for (name, value) in url::form_urlencoded::parse(fragment.as_bytes()) {
        match name.as_ref() {
            "shape" => {
                let shape = Shape::from_str(&value, false);
                let names = Shape::value_variants()
                    .iter()
                    .filter_map(|it| it.to_possible_value());
                let names: Vec<String> = names.map(|it| it.get_name().to_owned()).collect();
                let unknown =
                    |_| format!("no shape `{value}`; expected one of {}", names.join(", "));
                options.shape = Some(shape.map_err(unknown)?);
            }
            "batch" => {
                let number = value.parse().ok().filter(|it| (1..=LARGEST).contains(it));
                options.batch =
                    Some(number.ok_or(format!("batch={value}: expected 1 to {LARGEST}"))?);
            }
            "only" if value == "denials" => options.denials = true,
            "only" => return Err(format!("only={value}: expected only=denials")),
            "ca" => options.ca = Some(PathBuf::from(value.as_ref())),
            "token" => options.token = Some(PathBuf::from(value.as_ref())),
            other => {
                return Err(format!(
                    "no option `{other}`; expected shape, batch, only, ca or token"
                ));
            }
        }
    }
    Ok(options)
}

fn place(url: Url, options: Options) -> Result<Place, String> {
    let scheme = url.scheme().to_owned();
    let tls = matches!(scheme.as_str(), "https") || scheme.ends_with("+tls");
    if !tls && options.ca.is_some() {
        return Err(format!("`ca` is for TLS, and {scheme} is without"));
    }
    let with_token = matches!(
        scheme.split('+').next(),
        Some("http" | "https" | "otlp" | "nats")
    );
    if !with_token && options.token.is_some() {
        return Err(format!("{scheme} has no use for a token"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a secret has no place in a URL; give a file with `#token=FILE`".to_owned());
    }
    let host = |url: &Url, port: u16| -> Result<String, String> {
        let host = url.host_str().filter(|it| !it.is_empty());
        let host = host.ok_or_else(|| format!("{url}: no host"))?;
        Ok(format!("{host}:{}", url.port().unwrap_or(port)))
    };
    let path = || {
        url.to_file_path()
            .or_else(|()| Ok(PathBuf::from(url.path())))
            .map_err(|()| String::new())
    };
    let remote = |url: Url| Remote {
        url,
        tls,
        ca: options.ca.clone(),
        token: options.token.clone(),
    };
    Ok(match scheme.as_str() {
        "file" => Place::File(path()?),
        "stdout" => Place::Stdout,
        "http" | "https" => Place::Webhook(remote(url)),
        "otlp" | "otlp+tls" => {
            let scheme = if tls { "https" } else { "http" };
            let url = format!("{scheme}://{}", host(&url, 4317)?);
            Place::Otlp(remote(Url::parse(&url).map_err(|it| it.to_string())?))
        }
        "nats" | "nats+tls" => {
            host(&url, 4222)?;
            if url.path().trim_matches('/').is_empty() {
                return Err(format!(
                    "{url}: no subject; expected nats://HOST:4222/SUBJECT"
                ));
            }
            Place::Nats(remote(url))
        }
        "syslog+udp" => Place::Syslog(Syslog::Udp(host(&url, 514)?)),
        "syslog+tcp" | "syslog+tls" => {
            host(&url, 0)?;
            Place::Syslog(Syslog::Tcp(remote(url)))
        }
        "syslog+unix" => Place::Syslog(Syslog::Unix(path()?)),
        _ => {
            return Err(format!(
                "no scheme `{scheme}`; expected file, stdout, http, https, otlp, otlp+tls, nats, nats+tls, \
                 syslog+udp, syslog+tcp, syslog+tls or syslog+unix"
            ));
        }
    })
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good(text: &str) -> Sink {
        text.parse().expect(text)
    }

    #[test]
    fn each_kind_is_known_by_its_scheme() {
        for (url, kind) in [
            ("file:///var/log/x.jsonl", "file"),
            ("stdout:", "stdout"),
            ("otlp://collector:4317", "otlp"),
            ("nats+tls://bus/enforcer.events", "nats"),
            (
                "https://siem.example.com/in?x=y#shape=ocsf&batch=1",
                "webhook",
            ),
            ("syslog+tls://siem:6514#ca=/ca.pem&shape=cef", "syslog"),
            ("syslog+unix:///dev/log", "syslog"),
        ] {
            assert_eq!(good(&format!("a={url}")).place.kind(), kind, "{url}");
        }
        let sink = good("siem=https://siem.example.com/in?x=y#shape=ocsf&only=denials&token=/t");
        assert_eq!(
            (sink.shape, sink.batch, sink.denials),
            (Shape::Ocsf, 100, true)
        );
        let Place::Webhook(remote) = sink.place else {
            panic!("no webhook")
        };
        assert_eq!(remote.to_string(), "https://siem.example.com/in?x=y");
        assert_eq!(remote.token, Some("/t".into()));
        assert_eq!(good("a=http://a/").shape, Shape::CloudEvents);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("https://a/", "NAME"),
            ("a b=https://a/", "name"),
            ("a=nonsense", "relative URL"),
            ("a=ftp://a/", "no scheme"),
            ("a=nats://a:4222", "no subject"),
            ("a=https://a/#shape=xml", "no shape"),
            ("a=https://a/#colour=red", "no option"),
            ("a=https://a/#batch=0", "1 to 1000"),
            ("a=http://a/#ca=/ca.pem", "TLS"),
            ("a=https://me:secret@a/", "token=FILE"),
            ("a=file:///x#token=/t", "token"),
        ] {
            let error = text.parse::<Sink>().expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
