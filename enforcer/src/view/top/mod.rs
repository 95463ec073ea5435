//! `enforcer top`: the same in a terminal.

mod draw;
#[cfg(test)]
mod picture;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use serde_json::Value;

use super::board::{Board, Line};
use crate::client;

/// How often it looks anew.
const EVERY: Duration = Duration::from_millis(500);

/// What is shown, and how.
#[derive(Debug)]
pub struct Top {
    /// What the records add up to.
    pub board: Board,
    /// What the daemon last said, or why it does not.
    pub status: Result<Value, String>,
    /// Only what was denied.
    pub only_denied: bool,
    /// Only what has this in it.
    pub filter: String,
    /// Whether the filter is being typed.
    pub typing: bool,
    /// New decisions are not shown for the moment.
    pub paused: Option<Vec<Line>>,
}

impl Default for Top {
    fn default() -> Self {
        Self {
            board: Board::default(),
            status: Ok(Value::Null),
            only_denied: false,
            filter: String::new(),
            typing: false,
            paused: None,
        }
    }
}

/// What a key has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Go on.
    Stay,
    /// Somebody wants out.
    Leave,
}

impl Top {
    /// The decisions to show, the latest first.
    pub fn decisions(&self) -> impl Iterator<Item = &Line> {
        let paused = self.paused.as_deref().unwrap_or_default().iter();
        let live = self.board.recent.iter().filter(|_| self.paused.is_none());
        paused.chain(live).filter(|line| self.wants(line))
    }

    fn wants(&self, line: &Line) -> bool {
        let Line {
            who,
            credential,
            to,
            why,
            outcome,
            act,
            ..
        } = line;
        let has = |text: &str| text.to_lowercase().contains(&self.filter.to_lowercase());
        let found = [who, credential, to, why, act]
            .into_iter()
            .any(|text| has(text))
            || has(outcome);
        found && (!self.only_denied || *outcome != "allowed")
    }

    /// Acts on a key.
    pub fn press(&mut self, key: KeyCode) -> Then {
        match (self.typing, key) {
            (true, KeyCode::Enter) => self.typing = false,
            (true, KeyCode::Esc) => {
                self.typing = false;
                self.filter.clear();
            }
            (true, KeyCode::Backspace) => drop(self.filter.pop()),
            (true, KeyCode::Char(it)) => self.filter.push(it),
            (false, KeyCode::Char('q') | KeyCode::Esc) => return Then::Leave,
            (false, KeyCode::Char('/')) => self.typing = true,
            (false, KeyCode::Char('d')) => self.only_denied = !self.only_denied,
            (false, KeyCode::Char(' ')) => {
                self.paused = match self.paused.take() {
                    Some(_) => None,
                    None => Some(self.board.recent.iter().cloned().collect()),
                };
            }
            _ => {}
        }
        Then::Stay
    }
}

/// Shows the log in this directory and what the daemon at this socket says, until somebody presses `q`.
///
/// # Errors
/// If this is no terminal, or the log cannot be read.
pub fn run(log: &Path, socket: &Path) -> io::Result<()> {
    let mut tail = Tail::new(log);
    let mut top = Top::default();
    tail.read(&mut top.board)?;
    let mut terminal = ratatui::try_init()?;
    let result = turn(&mut terminal, &mut top, &mut tail, socket);
    ratatui::restore();
    result
}

fn turn(
    terminal: &mut ratatui::DefaultTerminal,
    top: &mut Top,
    tail: &mut Tail,
    socket: &Path,
) -> io::Result<()> {
    loop {
        tail.read(&mut top.board)?;
        top.status = client::status(socket);
        terminal.draw(|frame| draw::all(top, frame))?;
        while event::poll(EVERY)? {
            let Event::Key(key) = event::read()? else {
                break;
            };
            if key.kind != KeyEventKind::Press {
                continue;
            }
            let interrupted =
                key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
            if interrupted || top.press(key.code) == Then::Leave {
                return Ok(());
            }
            terminal.draw(|frame| draw::all(top, frame))?;
        }
    }
}

/// The log's files, and how far each was read.
struct Tail {
    directory: PathBuf,
    read: BTreeMap<PathBuf, u64>,
}

impl Tail {
    fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            read: BTreeMap::new(),
        }
    }

    /// Adds what is new, in whole lines.
    fn read(&mut self, board: &mut Board) -> io::Result<()> {
        let entries = fs::read_dir(&self.directory)?.map(|entry| Ok(entry?.path()));
        let mut files = entries.collect::<io::Result<Vec<_>>>()?;
        files.retain(|file| file.extension().is_some_and(|it| it == "jsonl"));
        // Their names sort as they were written.
        files.sort();
        self.read.retain(|file, _| files.contains(file));
        for path in files {
            let file = match File::open(&path) {
                // Removed to keep the log's limits.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file?,
            };
            let at = self.read.entry(path).or_default();
            let mut file = BufReader::new(file);
            file.seek(SeekFrom::Start(*at))?;
            let mut line = Vec::new();
            loop {
                line.clear();
                let count = file.read_until(b'\n', &mut line)?;
                if line.last() != Some(&b'\n') {
                    break;
                }
                *at += count as u64;
                if let Ok(record) = serde_json::from_slice(&line) {
                    board.add(&record);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::*;

    /// What stands in a terminal of this size, as lines.
    fn screen(top: &Top, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal.draw(|frame| draw::all(top, frame)).expect("drawn");
        terminal.backend().to_string()
    }

    fn examples() -> Top {
        let mut top = Top::default();
        let records = include_str!("../../../tests/shapes/golden/records.jsonl");
        for line in records.lines() {
            top.board
                .add(&serde_json::from_str(line).expect("a record"));
        }
        top.status = Ok(
            json!({"state": "enforcing/lsm", "bundle": {"issuer": "iga", "version": 42}, "files": 12,
            "sinks": [{"name": "siem", "behind": 7, "error": "no route"}]}),
        );
        top
    }

    /// As it was, or `UPDATE_PICTURES=1` draws it anew.
    #[test]
    fn the_picture_is_of_this_screen() {
        let mut terminal = Terminal::new(TestBackend::new(150, 32)).expect("a terminal");
        let top = examples();
        terminal
            .draw(|frame| draw::all(&top, frame))
            .expect("drawn");
        let picture = picture::of(terminal.backend().buffer());
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/top.svg");
        if std::env::var_os("UPDATE_PICTURES").is_some() {
            fs::write(&path, &picture).expect("written");
        }
        let kept = fs::read_to_string(path).expect("a picture");
        assert!(
            kept == picture,
            "look at what UPDATE_PICTURES=1 makes of docs/top.svg"
        );
    }

    #[test]
    fn everything_that_matters_is_on_the_screen() {
        let screen = screen(&examples(), 160, 45);
        for expected in [
            "enforcing/lsm",
            "iga 42",
            "killed",
            "203.0.113.9:443",
            "outside-destination",
            "stripe-api-key",
            "billing",
            "Holders",
            "/app/billing      ",
            "denials",
            "17",
            "siem",
            "no route",
        ] {
            assert!(screen.contains(expected), "no {expected} in\n{screen}");
        }
    }

    #[test]
    fn keys_filter_pause_and_leave() {
        let mut top = examples();
        assert!(screen(&top, 160, 45).contains("allowed   read"));
        top.press(KeyCode::Char('d'));
        assert!(top.decisions().all(|it| it.outcome != "allowed"));
        top.press(KeyCode::Char('/'));
        "gdb"
            .chars()
            .for_each(|it| assert_eq!(top.press(KeyCode::Char(it)), Then::Stay));
        top.press(KeyCode::Enter);
        assert_eq!(top.decisions().count(), 1);
        assert!(screen(&top, 160, 45).contains("/usr/bin/gdb[930]"));
        top.press(KeyCode::Char('/'));
        top.press(KeyCode::Esc);
        let shown = top.decisions().count();
        top.press(KeyCode::Char(' '));
        let denied = json!({"kind": "read", "verdict": "deny", "credential": "key", "process": {"exe": "/x"}});
        top.board.add(&denied);
        assert_eq!(top.decisions().count(), shown);
        top.press(KeyCode::Char(' '));
        assert_eq!(top.decisions().count(), shown + 1);
        assert_eq!(top.press(KeyCode::Char('q')), Then::Leave);
    }

    #[test]
    fn a_daemon_that_does_not_answer_and_a_small_screen_are_no_trouble() {
        let mut top = examples();
        top.status = Err("no answer".to_owned());
        assert!(screen(&top, 100, 30).contains("no answer"));
        for (width, height) in [(1, 1), (10, 3), (40, 10)] {
            screen(&top, width, height);
        }
    }

    #[test]
    fn what_is_appended_is_read_and_half_a_line_waits() {
        use std::io::Write as _;
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("e-1.jsonl");
        let mut file = File::create(&path).expect("made");
        let line = json!({"kind": "read", "verdict": "deny", "credential": "key"}).to_string();
        let mut board = Board::default();
        let mut tail = Tail::new(directory.path());
        writeln!(file, "{line}").expect("written");
        write!(file, "{}", &line[..10]).expect("written");
        tail.read(&mut board).expect("read");
        assert_eq!(board.recent.len(), 1);
        writeln!(file, "{}", &line[10..]).expect("written");
        tail.read(&mut board).expect("read");
        assert_eq!(board.recent.len(), 2);
    }
}
