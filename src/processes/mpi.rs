//! Processes that MPI has started.
//!
//! Data moves through collective operations that do no arithmetic, and every sum is computed here in the order of the ranks:
//! MPI's own reductions promise no order. No call blocks inside MPI, whose libraries keep the processor busy while they wait.

use super::{Processes, take_turns};
use anyhow::{Context, Result, ensure};
use mpi::environment::Universe;
use mpi::request::{Request, Scope, StaticScope, scope};
use mpi::topology::{Rank, SimpleCommunicator};
use mpi::traits::*;
use mpi::{Tag, Threading};
use std::mem::{ManuallyDrop, forget};
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Bytes of the message that announces the length of a gathered part, and holds all of a short one.
const FRAME: usize = 2048;
/// Bytes of a frame that hold the length.
const LENGTH: usize = size_of::<u64>();
/// Bytes that one broadcast moves at most: MPI counts with 32 bits.
const PIECE: usize = 1 << 28;
/// Tag of the message that a process has been asked to stop.
const ASKED: Tag = 1;
/// Tag of the message that a process ends all.
const ENDS: Tag = 2;
/// Bytes that a process gathers at a time from all processes together.
const GATHERED: usize = 1 << 25;

/// MPI from its initialisation on. Dropping it waits for all processes.
///
/// A panic ends all of them instead.
pub struct Session {
    world: Arc<Group>,
    /// The thread that watches over the others, until the sender is dropped.
    watch: Option<(Sender<()>, JoinHandle<()>)>,
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
        let session = Self { world, watch: None, _universe: universe };
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

    /// Calls `lost` with the rank of a process that does not answer within 4 seconds after a request to stop.
    ///
    /// A request such as TERM takes effect in the next exchange, in which all processes wait forever for one that has been
    /// killed. Every process calls this at the start, and `is_asked` tells whether it has been asked to stop. The request to
    /// one process makes all of them answer, on a thread of their own, whatever they compute.
    ///
    /// `lost` should end all processes. It is not called while this process saves a checkpoint.
    pub fn watch(
        &mut self,
        is_asked: impl Fn() -> bool + Send + 'static,
        lost: impl FnOnce(usize) + Send + 'static,
    ) {
        let (session, end) = channel();
        let world = self.world.clone();
        let watch = move || {
            if let Some(rank) = world.silent_process(is_asked, &end) {
                take_turns(|| lost(rank));
            }
        };
        self.watch = Some((session, thread::spawn(watch)));
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
        if let Some((session, watch)) = self.watch.take() {
            drop(session);
            let _ = watch.join();
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
    /// Sends a message without content to other processes. Nobody waits for it to arrive.
    fn tell(&self, others: Range<Rank>, tag: Tag) {
        const MARK: &u8 = &1;
        others.for_each(|rank| {
            forget(self.0.process_at_rank(rank).immediate_send_with_tag(StaticScope, MARK, tag));
        });
    }

    /// Tells the other processes that this one ends all; returns whether none with a lower rank has said so within a second.
    ///
    /// Process 0 does not wait.
    fn is_first_to_end(&self) -> bool {
        let rank = self.0.rank();
        self.tell(0..rank, ENDS);
        self.tell(rank + 1..self.0.size(), ENDS);
        let (start, mut is_first) = (Instant::now(), true);
        // The first one ends this one, too.
        let time = |is_first| Duration::from_secs(if is_first { 1 } else { 3 });
        let has_said = |rank| self.0.process_at_rank(rank).immediate_probe_with_tag(ENDS).is_some();
        while rank > 0 && start.elapsed() < time(is_first) {
            is_first &= !(0..rank).any(has_said);
            thread::sleep(Duration::from_millis(5));
        }
        is_first
    }

    /// Waits for a request to stop, and returns the rank of a process that does not answer then.
    ///
    /// Returns `None` when the sender of `end` is dropped. As soon as a process knows of a request, it tells process 0, and
    /// process 0 tells all. If another process ends all, this one ends soon, even if the launcher cannot end it.
    fn silent_process(&self, is_asked: impl Fn() -> bool, end: &Receiver<()>) -> Option<usize> {
        const PERIOD: Duration = Duration::from_millis(100);
        /// Periods in which an answer must come. A process that was suspended does not count the time.
        const PERIODS: u32 = 40;
        let partners = if self.0.rank() == 0 { 1..self.0.size() } else { 0..1 };
        let mut silent: Vec<Rank> = partners.clone().collect();
        let mut periods = None;
        while end.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
            while let Some(status) = self.0.any_process().immediate_probe_with_tag(ASKED) {
                let rank = status.source_rank();
                let (_, _): (u8, _) = self.0.process_at_rank(rank).receive_with_tag(ASKED);
                silent.retain(|&other| other != rank);
            }
            if periods.is_none() && (is_asked() || silent.len() < partners.len()) {
                periods = Some(0);
                self.tell(partners.clone(), ASKED);
            }
            if let (Some(periods), Some(&rank)) = (&mut periods, silent.first()) {
                *periods += 1;
                if *periods > PERIODS {
                    return Some(rank as usize);
                }
            }
            if self.0.any_process().immediate_probe_with_tag(ENDS).is_some() {
                // Another one reports first.
                thread::sleep(Duration::from_secs(2));
                take_turns(|| self.0.abort(1));
            }
        }
        None
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
