//! Processes that train one model together.
//!
//! ```
//! use candle_textbook::processes::{Processes, share, threads};
//! use std::sync::Arc;
//!
//! fn main() -> anyhow::Result<()> {
//!     // Threads stand in for processes; `mpi` has those that `mpirun` starts.
//!     let numbers: Vec<f64> = (1..=10).map(f64::from).collect();
//!     let sums = std::thread::scope(|scope| {
//!         let work = |process: Arc<dyn Processes>| {
//!             let own = &numbers[share(numbers.len(), process.rank(), process.size())];
//!             let mut sum = [own.iter().sum::<f64>()];
//!             process.sum_f64(&mut sum).map(|()| sum[0])
//!         };
//!         let workers: Vec<_> = threads(3).into_iter().map(|process| scope.spawn(move || work(process))).collect();
//!         workers.into_iter().map(|worker| worker.join().unwrap()).collect::<Result<Vec<_>, _>>()
//!     })?;
//!     assert_eq!(sums, [55.0; 3]);
//!     Ok(())
//! }
//! ```
//!
//! Every process holds the whole model and computes its [`share`] of each batch. [`Processes`] is how they exchange results.

#[cfg(feature = "mpi")]
pub mod mpi;

use crate::kernels::cpu::parallel;
use anyhow::{Result, anyhow, ensure};
use std::env;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Processes that work together, as one of them sees them.
///
/// All calls but [`rank`](Self::rank), [`size`](Self::size) and [`end_all`](Self::end_all) are collective: every process
/// makes the same calls in the same order, and a call returns once all have made it. They may come while another thread
/// exchanges gradients.
///
/// Sums are added in the order of the ranks, so every process gets the same bits, run after run.
pub trait Processes: Send + Sync {
    /// Number of this process, from 0.
    fn rank(&self) -> usize;

    /// Number of processes.
    fn size(&self) -> usize;

    /// Returns the bytes that each process passes, in the order of the ranks. Their numbers may differ.
    ///
    /// # Errors
    /// Fails if a process has ended, or cannot be reached.
    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// Returns the bytes that process 0 passes; those of the others are ignored.
    ///
    /// # Errors
    /// Fails if [`gather`](Self::gather) would.
    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let bytes = if self.rank() == 0 { bytes } else { vec![] };
        Ok(self.gather(&bytes)?.swap_remove(0))
    }

    /// Replaces each value by its sum over all processes.
    ///
    /// All pass the same number of values, a multiple of [`size`](Self::size).
    ///
    /// Used for the gradients. `in_background` says that another thread of this process computes meanwhile, to which the
    /// wait should leave the processor.
    ///
    /// # Errors
    /// Fails if [`gather`](Self::gather) would, or the numbers of values differ.
    fn sum_f32(&self, values: &mut [f32], _in_background: bool) -> Result<()> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        values.fill(0.0);
        for part in self.gather(&bytes)? {
            ensure!(part.len() == bytes.len(), "found {} bytes to sum, expected {}", part.len(), bytes.len());
            let part = part.as_chunks().0.iter().map(|&value| f32::from_le_bytes(value));
            values.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
        }
        Ok(())
    }

    /// Returns the same processes for another thread.
    ///
    /// Its calls do not wait for the calls made here.
    ///
    /// # Errors
    /// Fails if [`gather`](Self::gather) would.
    fn for_another_thread(&self) -> Result<Arc<dyn Processes>>;

    /// Calls `report` and ends all processes, the program with the exit code `code`. Not collective.
    ///
    /// If another one with a lower rank does so at the same time, only that one reports.
    fn end_all(&self, report: Box<dyn FnOnce() + '_>, code: u8) -> ! {
        report();
        std::process::exit(code.into())
    }

    /// Waits for all processes.
    ///
    /// # Errors
    /// Fails if [`gather`](Self::gather) would.
    fn barrier(&self) -> Result<()> {
        self.gather(&[]).map(drop)
    }

    /// Returns the values that each process passes, in the order of the ranks. Their numbers may differ.
    ///
    /// # Errors
    /// Fails if [`gather`](Self::gather) would.
    fn gather_f64(&self, values: &[f64]) -> Result<Vec<Vec<f64>>> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let values =
            |bytes: &Vec<u8>| bytes.as_chunks().0.iter().map(|&value| f64::from_le_bytes(value)).collect();
        Ok(self.gather(&bytes)?.iter().map(values).collect())
    }

    /// Replaces each value by its sum over all processes, which must pass the same number of values.
    ///
    /// # Errors
    /// Fails if [`gather`](Self::gather) would, or the numbers of values differ.
    fn sum_f64(&self, values: &mut [f64]) -> Result<()> {
        let parts = self.gather_f64(values)?;
        values.fill(0.0);
        for part in parts {
            ensure!(
                part.len() == values.len(),
                "found {} values to sum, expected {}",
                part.len(),
                values.len()
            );
            values.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
        }
        Ok(())
    }
}

/// Returns the part of `len` examples that process `rank` of `size` computes.
///
/// It is a contiguous range, in the order of the ranks.
///
/// The shares differ by one example at most. If there are fewer examples than processes, process 0 computes all of them and
/// the shares of the others are empty, so that batch normalisation always has a batch.
///
/// # Panics
/// Panics if `rank` is not below `size`.
pub fn share(len: usize, rank: usize, size: usize) -> Range<usize> {
    assert!(rank < size, "found process {rank} of {size}");
    let bound = |rank: usize| (len as u128 * rank as u128 / size as u128) as usize;
    match len < size {
        true if rank == 0 => 0..len,
        true => len..len,
        false => bound(rank)..bound(rank + 1),
    }
}

/// What the launcher of an MPI program, such as `mpirun`, tells the process in its environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// Number of this process, from 0.
    pub rank: usize,
    /// Number of processes.
    pub size: usize,
    /// Number of this process among those on this machine, from 0, if known.
    pub local_rank: Option<usize>,
    /// Number of processes on this machine, if known.
    pub local_size: Option<usize>,
}

impl Launch {
    /// Returns `None` unless a launcher started the process as one of several.
    pub fn from_environment() -> Option<Self> {
        Self::from_variables(|name| env::var(name).ok()?.parse().ok())
    }

    fn from_variables(number: impl Fn(&str) -> Option<usize>) -> Option<Self> {
        // OpenMPI; MPICH and Intel MPI; MVAPICH2; Slurm's `srun --mpi=pmix`.
        let names = [
            ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
            ("PMI_RANK", "PMI_SIZE"),
            ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
            ("PMIX_RANK", "SLURM_NTASKS"),
        ];
        let first = |names: &[&str]| names.iter().find_map(|name| number(name));
        let local_rank = first(&["OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"]);
        let local_size = first(&["OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"]);
        let launch =
            |(rank, size)| Some(Self { rank: number(rank)?, size: number(size)?, local_rank, local_size });
        names.into_iter().find_map(launch).filter(|launch| launch.size > 1)
    }
}

/// Runs `work` as one of `processes`, all of which run it at the same time.
///
/// Three things then involve all processes. Batch normalisation in training, forward and backward, uses the statistics of
/// the shares of all. The evaluations of [`train`](crate::train) divide their examples among the processes and return the
/// same result to each. The checks and fingerprints of image folders divide the files. The backward pass of a loss
/// computed here does not need to run here.
pub fn together<R>(processes: &Arc<dyn Processes>, work: impl FnOnce() -> R) -> R {
    parallel::with_local(Together(processes.clone()), work)
}

/// The processes that a thread works with.
#[derive(Clone)]
struct Together(Arc<dyn Processes>);

/// The processes that this thread works with inside [`together`], if there is more than one.
pub(crate) fn current() -> Option<Arc<dyn Processes>> {
    parallel::local().map(|Together(processes)| processes).filter(|processes| processes.size() > 1)
}

/// Returns the part of `len` examples or files that this process handles.
///
/// Inside [`together`] it is the process's share, outside all of them.
pub(crate) fn own_share(len: usize) -> Range<usize> {
    current().map_or(0..len, |processes| share(len, processes.rank(), processes.size()))
}

/// Calls `work`, which is to save a checkpoint or to end all processes because one of them is lost: these take turns.
pub(crate) fn take_turns<R>(work: impl FnOnce() -> R) -> R {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    work()
}

/// Returns `size` stand-ins for processes, each for one thread of this process.
///
/// A thread that ends, or drops its own, ends the waiting of the others with an error.
pub fn threads(size: usize) -> Vec<Arc<dyn Processes>> {
    let meeting = Arc::new(Meeting::new(size));
    let thread = |rank| -> Arc<dyn Processes> { Arc::new(Thread::new(rank, size, meeting.clone())) };
    (0..size).map(thread).collect()
}

struct Thread {
    rank: usize,
    size: usize,
    meeting: Arc<Meeting>,
    /// Number of further meetings that this thread has opened.
    opened: AtomicUsize,
}

impl Thread {
    fn new(rank: usize, size: usize, meeting: Arc<Meeting>) -> Self {
        Self { rank, size, meeting, opened: AtomicUsize::new(0) }
    }
}

struct Meeting {
    state: Mutex<Round>,
    changed: Condvar,
    /// The meetings that the threads have opened for others.
    further: Mutex<Vec<Arc<Meeting>>>,
}

impl Meeting {
    fn new(size: usize) -> Self {
        Self { state: Mutex::new(Round::new(size)), changed: Condvar::new(), further: Mutex::default() }
    }
}

struct Round {
    number: u64,
    /// What each thread has brought to this round.
    parts: Vec<Option<Vec<u8>>>,
    /// The parts of the round before. No round ends before all threads have read them.
    last: Vec<Vec<u8>>,
    /// Threads that have ended.
    ended: Vec<bool>,
}

impl Round {
    fn new(size: usize) -> Self {
        Self { number: 0, parts: vec![None; size], last: vec![], ended: vec![false; size] }
    }
}

impl Processes for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let Meeting { state, changed, .. } = &*self.meeting;
        let mut round = state.lock().unwrap_or_else(PoisonError::into_inner);
        let number = round.number;
        round.parts[self.rank] = Some(bytes.to_vec());
        if round.parts.iter().all(Option::is_some) {
            round.last = round.parts.iter_mut().filter_map(Option::take).collect();
            round.number += 1;
            changed.notify_all();
        }
        while round.number == number {
            let missing =
                round.parts.iter().zip(&round.ended).position(|(part, &ended)| part.is_none() && ended);
            if let Some(rank) = missing {
                return Err(anyhow!("process {rank} has ended"));
            }
            round = changed.wait(round).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(round.last.clone())
    }

    fn for_another_thread(&self) -> Result<Arc<dyn Processes>> {
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        let mut further = self.meeting.further.lock().unwrap_or_else(PoisonError::into_inner);
        if further.len() == number {
            further.push(Arc::new(Meeting::new(self.size)));
        }
        Ok(Arc::new(Self::new(self.rank, self.size, further[number].clone())))
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        let mut round = self.meeting.state.lock().unwrap_or_else(PoisonError::into_inner);
        round.ended[self.rank] = true;
        self.meeting.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `work` on `size` threads.
    fn run<R: Send>(size: usize, work: impl Fn(Arc<dyn Processes>) -> R + Sync) -> Vec<R> {
        let work = &work;
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                threads(size).into_iter().map(|processes| scope.spawn(move || work(processes))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn shares_are_contiguous_and_none_is_empty_unless_process_0_has_all() {
        for (len, size) in [(0, 1), (7, 1), (7, 2), (2, 3), (3, 3), (100, 7), (usize::MAX, 3)] {
            let shares: Vec<_> = (0..size).map(|rank| share(len, rank, size)).collect();
            assert_eq!((shares[0].start, shares[size - 1].end), (0, len));
            assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start));
            let is_alone = shares[0] == (0..len);
            assert!(
                is_alone || shares.iter().all(|share| share.len().abs_diff(len / size) <= 1),
                "{shares:?}"
            );
        }
    }

    #[test]
    fn sums_and_gathered_parts_are_the_same_on_all() {
        let results = run(3, |processes| {
            let rank = processes.rank();
            let mut sums = [1e16, rank as f64, -1e16];
            for _ in 0..100 {
                processes.sum_f64(&mut sums).unwrap();
                sums = [1e16, rank as f64, -1e16];
            }
            processes.sum_f64(&mut sums).unwrap();
            (sums, processes.gather(&vec![rank as u8; rank]).unwrap())
        });
        assert!(
            results.iter().all(|result| *result == ([3e16, 3.0, -3e16], vec![vec![], vec![1], vec![2, 2]]))
        );
    }

    #[test]
    fn a_thread_that_ends_does_not_leave_the_others_waiting() {
        let errors = run(3, |processes| match processes.rank() {
            1 => None,
            _ => Some(processes.barrier().unwrap_err().to_string()),
        });
        assert_eq!(errors[0].as_deref(), Some("process 1 has ended"));
        assert_eq!(errors[0], errors[2]);
    }

    #[test]
    fn each_launcher_is_known_by_its_variables() {
        let launch = |variables: &[(&str, usize)]| {
            Launch::from_variables(|name| Some(variables.iter().find(|variable| variable.0 == name)?.1))
        };
        let openmpi = [
            ("OMPI_COMM_WORLD_RANK", 2),
            ("OMPI_COMM_WORLD_SIZE", 4),
            ("OMPI_COMM_WORLD_LOCAL_RANK", 0),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", 2),
        ];
        let found = Launch { rank: 2, size: 4, local_rank: Some(0), local_size: Some(2) };
        assert_eq!(launch(&openmpi), Some(found));
        for rank_and_size in [
            ["PMI_RANK", "PMI_SIZE"],
            ["MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"],
            ["PMIX_RANK", "SLURM_NTASKS"],
        ] {
            let [rank, size] = rank_and_size;
            let found = Launch { rank: 0, size: 3, local_rank: None, local_size: None };
            assert_eq!(launch(&[(rank, 0), (size, 3)]), Some(found));
            assert_eq!(launch(&[(rank, 0), (size, 1)]), None);
        }
        assert_eq!((launch(&[]), launch(&[("SLURM_NTASKS", 8)])), (None, None));
    }

    #[test]
    fn another_thread_has_meetings_of_its_own() {
        let sums = run(2, |processes| {
            let other = processes.for_another_thread().unwrap();
            let mut values = [1.0, processes.rank() as f32];
            // One calls here first, the other there.
            for turn in 0..2 {
                match (processes.rank() + turn) % 2 {
                    0 => std::thread::scope(|scope| {
                        scope.spawn(|| other.sum_f32(&mut values, true).unwrap());
                        processes.barrier().unwrap();
                    }),
                    _ => std::thread::scope(|scope| {
                        scope.spawn(|| processes.barrier().unwrap());
                        other.sum_f32(&mut values, true).unwrap();
                    }),
                }
            }
            (values, processes.broadcast(vec![processes.rank() as u8]).unwrap())
        });
        assert_eq!(sums, [([4.0, 2.0], vec![0]), ([4.0, 2.0], vec![0])]);
    }

    #[test]
    fn processes_are_current_inside_together_only() {
        let [two, one] = [threads(2).remove(0), threads(1).remove(0)];
        let has_current = || current().is_some();
        assert_eq!(
            (has_current(), together(&two, has_current), together(&one, has_current)),
            (false, true, false)
        );
        assert!(!has_current());
    }
}
