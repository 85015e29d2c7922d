//! Memory that is written before it is read, without being zeroed first.

use super::parallel::{for_each_chunk, for_each_piece};
use super::real::Real;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// `len` elements without values.
pub(crate) fn uninit<T: Real>(len: usize) -> Vec<MaybeUninit<T>> {
    let mut data = Vec::with_capacity(len);
    // SAFETY: the capacity is there, and an element of `MaybeUninit` needs no value.
    unsafe { data.set_len(len) };
    data
}

/// The vector with all its elements initialised.
///
/// # Safety
/// Every element has been written.
pub(crate) unsafe fn assume_init<T: Real>(data: Vec<MaybeUninit<T>>) -> Vec<T> {
    let mut data = std::mem::ManuallyDrop::new(data);
    // SAFETY: the same allocation, and `MaybeUninit<T>` has the layout of `T`; the caller has written every element.
    unsafe { Vec::from_raw_parts(data.as_mut_ptr().cast(), data.len(), data.capacity()) }
}

/// The slice with all its elements initialised.
///
/// # Safety
/// Every element has been written.
pub(crate) unsafe fn assume_init_mut<T: Real>(data: &mut [MaybeUninit<T>]) -> &mut [T] {
    // SAFETY: `MaybeUninit<T>` has the layout of `T`, and the caller has written every element.
    unsafe { &mut *(std::ptr::from_mut(data) as *mut [T]) }
}

/// A new vector of `len` elements, which `write(i, piece)` writes in consecutive pieces of `size` elements.
///
/// # Safety
/// `write` writes every element of its piece.
pub(crate) unsafe fn build<T: Real>(
    len: usize,
    size: usize,
    write: impl Fn(usize, &mut [MaybeUninit<T>]) + Sync,
) -> Vec<T> {
    let mut data = uninit(len);
    for_each_piece(&mut data, size, write);
    // SAFETY: the pieces make up the whole, and `write` has written each of them.
    unsafe { assume_init(data) }
}

/// Copies `from` to `to`, of the same length, and returns what it has written.
pub(crate) fn write_copy<'a, T: Real>(to: &'a mut [MaybeUninit<T>], from: &[T]) -> &'a mut [T] {
    assert_eq!(to.len(), from.len());
    // SAFETY: both are `from.len()` long, `to` is borrowed mutably, and all of it is initialised afterwards.
    unsafe {
        std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_mut_ptr().cast(), from.len());
        &mut *(std::ptr::from_mut(to) as *mut [T])
    }
}

/// Writes `value` to every element and returns the initialised slice.
pub(crate) fn write_fill<T: Real>(to: &mut [MaybeUninit<T>], value: T) -> &mut [T] {
    to.iter_mut().for_each(|to| _ = to.write(value));
    // SAFETY: every element has been written.
    unsafe { &mut *(std::ptr::from_mut(to) as *mut [T]) }
}

/// The elements that a kernel writes, initialised or not.
pub(crate) struct Destination<'a, T> {
    start: *mut T,
    len: usize,
    _borrow: PhantomData<&'a mut [T]>,
}

impl<'a, T> From<&'a mut [T]> for Destination<'a, T> {
    fn from(data: &'a mut [T]) -> Self {
        Self { start: data.as_mut_ptr(), len: data.len(), _borrow: PhantomData }
    }
}

impl<'a, T> From<&'a mut Vec<T>> for Destination<'a, T> {
    fn from(data: &'a mut Vec<T>) -> Self {
        data.as_mut_slice().into()
    }
}

impl<'a, T> From<&'a mut [MaybeUninit<T>]> for Destination<'a, T> {
    fn from(data: &'a mut [MaybeUninit<T>]) -> Self {
        Self { start: data.as_mut_ptr().cast(), len: data.len(), _borrow: PhantomData }
    }
}

impl<'a, T> From<&'a mut Vec<MaybeUninit<T>>> for Destination<'a, T> {
    fn from(data: &'a mut Vec<MaybeUninit<T>>) -> Self {
        data.as_mut_slice().into()
    }
}

impl<T: Real> Destination<'_, T> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut T {
        self.start
    }

    /// Calls `work(i, piece)` in parallel on consecutive pieces of `size` elements (the last may be shorter).
    pub(crate) fn for_each_piece(self, size: usize, work: impl Fn(usize, Destination<'_, T>) + Sync) {
        let (len, size) = (self.len, size.max(1));
        let start = SendPtr(self.start);
        for_each_chunk(len.div_ceil(size), |i| {
            let range = i * size..len.min((i + 1) * size);
            // SAFETY: in bounds; pieces of different `i` do not overlap, and each `i` is visited once.
            let start = unsafe { start.get().add(range.start) };
            work(i, Destination { start, len: range.len(), _borrow: PhantomData });
        });
    }
}

/// A pointer that may be shared between threads, whose users keep their parts apart.
struct SendPtr<T>(*mut T);

impl<T> SendPtr<T> {
    fn get(&self) -> *mut T {
        self.0
    }
}

// SAFETY: only disjoint parts are written.
unsafe impl<T: Send> Sync for SendPtr<T> {}
