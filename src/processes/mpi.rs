//! Processes that MPI has started.
//!
//! Data moves through collective operations that do no arithmetic, and every sum is computed here in the order of the ranks:
//! MPI's own reductions promise no order. No call blocks inside MPI, whose libraries keep the processor busy while they wait.

use super::Processes;
use anyhow::{Context, Result, ensure};
use mpi::environment::Universe;
use mpi::request::{Request, Scope, StaticScope, scope};
use mpi::topology::SimpleCommunicator;
use mpi::traits::*;
use mpi::{Tag, Threading};
use std::mem::{ManuallyDrop, forget};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of the message that announces the length of a gathered part, and holds all of a short one.
const FRAME: usize = 2048;
/// Bytes of a frame that hold the length.
const LENGTH: usize = size_of::<u64>();
/// Bytes that one broadcast moves at most: MPI counts with 32 bits.
const PIECE: usize = 1 << 28;
/// Bytes that a process gathers at a time from all processes together.
const GATHERED: usize = 1 << 25;

/// MPI from its initialisation on. Dropping it waits for all processes.
///
/// A panic ends all of them instead.
pub struct Session {
    world: Arc<Group>,
    _universe: Universe,
}

impl Session {
    /// Initialises MPI. Call it once, and drop the session on the same thread.
    ///
    /// # Errors
    /// Fails if MPI has been initialised before, or does not let several threads communicate.
    pub fn start() -> Result<Self> {
        let (universe, threading) = mpi::initialize_with_threading(Threading::Multiple)
            .context("MPI: it has been initialised before in this process")?;
        let world = Arc::new(Group(ManuallyDrop::new(universe.world())));
        let session = Self { world, _universe: universe };
        ensure!(
            threading == Threading::Multiple,
            "MPI: found {threading:?} as its level of support for threads, expected Multiple: choose another MPI library"
        );
        Ok(session)
    }

    /// The processes that were started together.
    pub fn processes(&self) -> Arc<dyn Processes> {
        self.world.clone()
    }

    /// Ends all processes; the launcher reports `code` as the exit code.
    pub fn abort(&self, code: u8) -> ! {
        self.world.0.abort(code.into())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if thread::panicking() {
            // The others would wait for this process, and it for them.
            self.abort(101);
        }
    }
}

/// All processes, with messages apart from those of other groups.
///
/// MPI's finalisation frees it: at that time all processes are sure to take part.
struct Group(ManuallyDrop<SimpleCommunicator>);

// SAFETY: a communicator is a handle, and the level `Threading::Multiple` allows any thread to use it.
unsafe impl Send for Group {}
// SAFETY: as above.
unsafe impl Sync for Group {}

/// Waits for an operation.
fn wait<'a, D: ?Sized, S: Scope<'a>>(mut request: Request<'a, D, S>, in_background: bool) {
    /// How long a wait keeps the processor busy at first, because most messages arrive soon.
    const BUSY: Duration = Duration::from_micros(300);
    let start = Instant::now();
    loop {
        match request.test() {
            Ok(_) => return,
            Err(unfinished) => request = unfinished,
        }
        let waited = start.elapsed();
        match in_background {
            false if waited < BUSY => thread::yield_now(),
            _ => thread::sleep(pause(waited, in_background)),
        }
    }
}

/// How long to sleep after a wait of this length: the longer, the less often a thread wakes beside the one that computes.
fn pause(waited: Duration, in_background: bool) -> Duration {
    let shortest = Duration::from_micros(if in_background { 100 } else { 20 });
    (waited / 16).clamp(shortest, Duration::from_millis(1))
}

impl Group {
    /// Tells the processes with higher ranks that this one ends all; returns whether no lower one has said so within a second.
    ///
    /// Process 0 does not wait.
    fn is_first_to_end(&self) -> bool {
        const ENDS: Tag = 1;
        const MARK: &u8 = &1;
        for rank in self.0.rank() + 1..self.0.size() {
            // Nobody waits for the message to arrive.
            forget(self.0.process_at_rank(rank).immediate_send_with_tag(StaticScope, MARK, ENDS));
        }
        let (start, mut is_first) = (Instant::now(), true);
        // The first one ends this one, too.
        let time = |is_first| Duration::from_secs(if is_first { 1 } else { 5 });
        while self.0.rank() > 0 && start.elapsed() < time(is_first) {
            is_first &= self.0.any_process().immediate_probe_with_tag(ENDS).is_none();
            thread::sleep(Duration::from_millis(5));
        }
        is_first
    }

    fn all_gather<T: Equivalence>(&self, own: &[T], all: &mut [T], in_background: bool) {
        scope(|scope| wait(self.0.immediate_all_gather_into(scope, own, all), in_background));
    }
}

impl Processes for Group {
    fn rank(&self) -> usize {
        self.0.rank() as usize
    }

    fn size(&self) -> usize {
        self.0.size() as usize
    }

    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        const INLINE: usize = FRAME - LENGTH;
        let mut frame = [0; FRAME];
        frame[..LENGTH].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        if let Some(part) = frame[LENGTH..].get_mut(..bytes.len()) {
            part.copy_from_slice(bytes);
        }
        let mut frames = vec![0; FRAME * self.size()];
        self.all_gather(&frame, &mut frames, false);
        let (frames, _) = frames.as_chunks::<FRAME>();
        let parts = frames.iter().map(|frame| {
            let (length, part) = frame.split_at(LENGTH);
            let length = length.first_chunk().map_or(0, |&length| u64::from_le_bytes(length));
            (length as usize, part)
        });
        let longest = parts.clone().map(|(length, _)| length).max().unwrap_or(0);
        if longest <= INLINE {
            return Ok(parts.map(|(length, part)| part[..length].to_vec()).collect());
        }
        let mut all: Vec<Vec<u8>> = parts.clone().map(|(length, _)| Vec::with_capacity(length)).collect();
        let (mut own, mut others) = (vec![], vec![]);
        let piece = (GATHERED / self.size()).max(FRAME);
        for start in (0..longest).step_by(piece) {
            let size = piece.min(longest - start);
            own.clear();
            own.extend_from_slice(&bytes[start.min(bytes.len())..(start + size).min(bytes.len())]);
            own.resize(size, 0);
            others.resize(size * self.size(), 0);
            self.all_gather(&own, &mut others, false);
            for ((all, (length, _)), piece) in all.iter_mut().zip(parts.clone()).zip(others.chunks(size)) {
                all.extend_from_slice(&piece[..size.min(length - all.len())]);
            }
        }
        Ok(all)
    }

    fn broadcast(&self, mut bytes: Vec<u8>) -> Result<Vec<u8>> {
        let first = self.0.process_at_rank(0);
        let mut length = bytes.len() as u64;
        scope(|scope| wait(first.immediate_broadcast_into(scope, &mut length), false));
        bytes.resize(length as usize, 0);
        for piece in bytes.chunks_mut(PIECE) {
            scope(|scope| wait(first.immediate_broadcast_into(scope, piece), false));
        }
        Ok(bytes)
    }

    /// Each process sums one segment and sends the sums to all.
    fn sum_f32(&self, values: &mut [f32], in_background: bool) -> Result<()> {
        let (len, size) = (values.len(), self.size());
        ensure!(len.is_multiple_of(size), "found {len} values to sum, expected a multiple of {size}");
        if len == 0 {
            return Ok(());
        }
        let mut parts = vec![0f32; len];
        scope(|scope| {
            wait(self.0.immediate_all_to_all_into(scope, &*values, &mut parts[..]), in_background);
        });
        let (sums, others) = parts.split_at_mut(len / size);
        for part in others.chunks_exact(len / size) {
            sums.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
        }
        self.all_gather(sums, values, in_background);
        Ok(())
    }

    fn end_all(&self, report: Box<dyn FnOnce() + '_>, code: u8) -> ! {
        if self.is_first_to_end() {
            report();
        }
        self.0.abort(code.into())
    }

    fn for_another_thread(&self) -> Result<Arc<dyn Processes>> {
        Ok(Arc::new(Self(ManuallyDrop::new(self.0.duplicate()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_wakes_a_thread_ever_less_often() {
        let wakes = |until: Duration| {
            let next =
                |waited: &Duration| Some(*waited + pause(*waited, true)).filter(|waited| *waited < until);
            std::iter::successors(Some(Duration::ZERO), next).count()
        };
        let [ms, second] = [Duration::from_millis(1), Duration::from_secs(1)];
        assert_eq!((wakes(ms), wakes(second + ms) - wakes(second)), (10, 1));
        assert!(pause(Duration::ZERO, false) < pause(Duration::ZERO, true));
    }

    #[test]
    fn long_messages_are_gathered_in_pieces() {
        let session = Session::start().unwrap();
        let processes = session.processes();
        assert_eq!((processes.rank(), processes.size()), (0, 1));
        let bytes: Vec<u8> = (0..2 * GATHERED + 5).map(|i| (i % 251) as u8).collect();
        assert!(processes.gather(&bytes).unwrap() == [bytes]);
    }
}
