//! JSON in files.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Error;
use crate::files;

/// What is in a file; `None` if there is none.
pub fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, Error> {
    let Some(bytes) = files::read(path).map_err(Error::io(path))? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| Error::content(path, &error))
}

/// Puts it in a file's place.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    serde_json::to_vec(value)
        .map_err(io::Error::from)
        .and_then(|bytes| files::replace(path, &bytes))
        .map_err(Error::io(path))
}
