//! Records as lines on standard output and in a file: read from the log, so that who does not take them holds up nobody.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use enforcer_governance::journal::{Cursor, Reader};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Of one batch.
const RECORDS: usize = 256;
const BYTES: usize = 256 * 1024;
/// So long what is there is still written, at the end.
const LAST: Duration = Duration::from_secs(2);

/// Where records are written besides the log, as they come.
#[derive(Debug)]
pub struct Outputs {
    stdout: Output,
    file: Option<Output>,
    reader: Reader,
}

#[derive(Debug)]
struct Output {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Cursor>,
}

impl Outputs {
    /// From now on to standard output, and to a file if there is one (made with mode 0600).
    pub fn start(reader: Reader, file: Option<&Path>) -> io::Result<Self> {
        let now = || reader.from(reader.head().sequence + 1);
        let file = file.map(open).transpose()?;
        let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        Ok(Self {
            stdout: Output::start(now(), stdout.into(), "standard output"),
            file: file.map(|file| Output::start(now(), file, "event log")),
            reader,
        })
    }

    /// From now on to this file, opened anew.
    pub async fn write_to(&mut self, path: Option<&Path>) -> io::Result<()> {
        let opened = path.map(open).transpose()?;
        let cursor = match self.file.take() {
            Some(output) => output.stop().await,
            None => None,
        };
        self.file = opened.map(|file| {
            let now = || self.reader.from(self.reader.head().sequence + 1);
            Output::start(cursor.unwrap_or_else(now), file, "event log")
        });
        Ok(())
    }

    /// Writes what is in the log, and ends.
    pub async fn finish(self) {
        let file = async {
            if let Some(file) = self.file {
                file.stop().await;
            }
        };
        tokio::join!(self.stdout.stop(), file);
    }
}

impl Output {
    fn start(cursor: Cursor, to: tokio::fs::File, name: &'static str) -> Self {
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(echo(cursor, to, name, stopped));
        Self { stop, task }
    }

    /// Where it ended; `None` if it did not write in time what was there.
    async fn stop(mut self) -> Option<Cursor> {
        let _ = self.stop.send(());
        let ended = tokio::time::timeout(LAST, &mut self.task).await;
        self.task.abort();
        ended.ok()?.ok()
    }
}

fn open(path: &Path) -> io::Result<tokio::fs::File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map(tokio::fs::File::from_std)
}

/// Writes every record from the cursor on until it is told to stop, and then what there is. Tells of what cannot be
/// written, and goes on with the next.
async fn echo(
    mut cursor: Cursor,
    mut to: tokio::fs::File,
    name: &str,
    mut stopped: oneshot::Receiver<()>,
) -> Cursor {
    loop {
        let is_last = tokio::select! {
            _ = &mut stopped => true,
            () = cursor.wait() => false,
        };
        while cursor.behind() > 0 {
            if let Err(error) = copy(&mut cursor, &mut to).await {
                tracing::error!(%error, output = name, "records cannot be written");
                break;
            }
        }
        if is_last {
            return cursor;
        }
    }
}

async fn copy(cursor: &mut Cursor, to: &mut tokio::fs::File) -> io::Result<()> {
    let mut batch = cursor.read(RECORDS, BYTES)?;
    for line in &mut batch.lines {
        line.push(b'\n');
        to.write_all(line).await?;
    }
    to.flush().await
}
