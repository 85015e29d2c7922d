//! The thread on which models answer.

use super::answers::Answers;
use super::program::Job;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, SystemTime};

/// Number of models that stay loaded.
const KEPT: usize = 4;

/// A loaded model.
struct Loaded {
    dir: PathBuf,
    /// The time at which its weights were written. A training run replaces them.
    written: SystemTime,
    model: Box<dyn Answers>,
}

/// Answers `questions` until `is_ended` returns true.
///
/// # Errors
/// Fails if no more questions can come, as the server has stopped.
pub(super) fn answer(questions: &Receiver<Job>, is_ended: impl Fn() -> bool) -> Result<()> {
    let mut loaded: Vec<Loaded> = vec![];
    while !is_ended() {
        match questions.recv_timeout(Duration::from_millis(50)) {
            // The client is gone: its page has been left or loaded again.
            Ok(Job { reply, .. }) if reply.is_closed() => {}
            Ok(Job { program, dir, question, reply }) => {
                let model = find(&mut loaded, &dir, program.open);
                let _ = reply.send(model.and_then(|model| model.answer(&question)));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!("the server has stopped"),
        }
    }
    Ok(())
}

/// The model of the run in `dir`, which becomes the last of `loaded`.
fn find<'a>(
    loaded: &'a mut Vec<Loaded>,
    dir: &Path,
    open: fn(&Path) -> Result<Box<dyn Answers>>,
) -> Result<&'a dyn Answers> {
    ensure!(dir.exists(), "{}: there is no such run", dir.display());
    let weights = dir.join("model.safetensors");
    let written = weights.metadata().and_then(|file| file.modified());
    let written = written.with_context(|| format!("{}: this run has no model yet", dir.display()))?;
    let found = loaded.iter().position(|known| known.dir == dir && known.written == written);
    let model = match found {
        Some(place) => loaded.remove(place),
        None => Loaded { dir: dir.to_path_buf(), written, model: open(dir)? },
    };
    loaded.retain(|known| known.dir != dir);
    if loaded.len() == KEPT {
        loaded.remove(0);
    }
    loaded.push(model);
    Ok(loaded[loaded.len() - 1].model.as_ref())
}
