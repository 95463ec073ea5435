//! Which credential a path is, exactly.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use enforcer_common::ids::CredentialId;
use globset::{Glob, GlobMatcher, GlobSet, GlobSetBuilder};

use super::CompileError;
use crate::bundle::{Bundle, Source};

/// The path sources of a bundle. Of several that match, the first credential in the bundle's order counts.
#[derive(Clone, Debug)]
pub(super) struct Matcher {
    /// By position in the bundle.
    credentials: Vec<CredentialId>,
    files: HashMap<PathBuf, usize>,
    directories: HashMap<PathBuf, usize>,
    globs: GlobSet,
    /// Of each glob in the set.
    details: Vec<Detail>,
}

#[derive(Clone, Debug)]
struct Detail {
    position: usize,
    /// The components of a glob with a class: a class in the whole glob could match a `/`.
    parts: Option<Vec<Part>>,
}

#[derive(Clone, Debug)]
enum Part {
    /// `**`
    Any,
    One(GlobMatcher),
}

impl Matcher {
    pub fn of(bundle: &Bundle, credentials: &[CredentialId]) -> Result<Self, CompileError> {
        let mut files = HashMap::new();
        let mut directories = HashMap::new();
        let mut globs = GlobSetBuilder::new();
        let mut details = Vec::new();
        for (position, credential) in bundle.credentials.iter().enumerate() {
            for source in &credential.sources {
                match source {
                    Source::File(path) | Source::Socket(path) => {
                        files.entry(path.clone()).or_insert(position);
                    }
                    Source::Directory(path) => {
                        directories.entry(path.clone()).or_insert(position);
                    }
                    Source::Files(glob) => {
                        globs.add(glob.clone());
                        let parts = parts(glob)?;
                        details.push(Detail { position, parts });
                    }
                    // These are no paths, or have been placed.
                    _ => {}
                }
            }
        }
        Ok(Self {
            credentials: credentials.to_vec(),
            files,
            directories,
            globs: globs
                .build()
                .map_err(|source| CompileError::Patterns { source })?,
            details,
        })
    }

    pub fn credential_of(&self, path: &Path) -> Option<CredentialId> {
        let above = path.ancestors().skip(1);
        let directories = above.filter_map(|path| self.directories.get(path));
        let globs = self.globs.matches(path).into_iter();
        let globs = globs.filter_map(|index| self.details.get(index));
        let globs = globs.filter(|detail| detail.confirms(path));
        let position = (directories.chain(self.files.get(path)).copied())
            .chain(globs.map(|detail| detail.position))
            .min()?;
        self.credentials.get(position).copied()
    }
}

impl Detail {
    fn confirms(&self, path: &Path) -> bool {
        let Some(parts) = &self.parts else {
            return true;
        };
        let names = path.components().filter_map(|component| match component {
            Component::Normal(name) => Some(Path::new(name)),
            _ => None,
        });
        follows(parts, &names.collect::<Vec<_>>())
    }
}

fn follows(parts: &[Part], names: &[&Path]) -> bool {
    match (parts.split_first(), names.split_first()) {
        (None, None) => true,
        // As the last part it stands for at least one name.
        (Some((Part::Any, [])), Some(_)) => true,
        (Some((Part::Any, rest)), _) => {
            (0..=names.len()).any(|skipped| !rest.is_empty() && follows(rest, &names[skipped..]))
        }
        (Some((Part::One(part), rest)), Some((name, names))) => {
            part.is_match(name) && follows(rest, names)
        }
        _ => false,
    }
}

fn parts(glob: &Glob) -> Result<Option<Vec<Part>>, CompileError> {
    let text = glob.glob();
    if !text.contains('[') {
        return Ok(None);
    }
    let part = |component: &str| match component {
        "**" => Ok(Part::Any),
        _ => globset::GlobBuilder::new(component)
            .literal_separator(true)
            .backslash_escape(false)
            .build()
            .map(|glob| Part::One(glob.compile_matcher()))
            .map_err(|source| CompileError::Class {
                pattern: text.to_owned(),
                source,
            }),
    };
    text.split('/')
        .skip(1)
        .map(part)
        .collect::<Result<_, _>>()
        .map(Some)
}
