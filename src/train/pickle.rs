//! Python's pickle format, to the extent that `torch.save` uses it. Nothing in a pickle is executed.

use anyhow::{Context, Result, bail, ensure};
use std::collections::HashMap;

/// Largest number of objects in a pickle. A `state_dict` has about thirty per tensor.
const MAX_OBJECTS: usize = 1 << 21;

/// The position of an object in [`Pickle::objects`].
pub(super) type Id = usize;

/// A Python object, as far as weights need it.
#[derive(Debug, Clone)]
pub(super) enum Object<'a> {
    /// A whole number; a Boolean as 0 or 1.
    Integer(i64),
    Text(&'a str),
    /// A class or function, by module and name.
    Global(&'a str, &'a str),
    /// A list or a tuple.
    Sequence(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// An instance of a class, or the result of a function call.
    Instance {
        of: Id,
        arguments: Id,
        entries: Vec<(Id, Id)>,
    },
    /// An object outside the pickle, by its identifier.
    Persistent(Id),
    /// Any other object, such as a float or `None`.
    Other,
}

/// The objects of a pickle. They refer to each other by their positions, so cycles and deep nesting are harmless.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    pub objects: Vec<Object<'a>>,
    pub root: Id,
    /// Number of bytes up to the end of the pickle.
    pub length: usize,
}

impl<'a> Pickle<'a> {
    /// Reads the pickle at the start of `bytes`, of protocol 2 to 5.
    ///
    /// # Errors
    /// Fails if the pickle is truncated, damaged, of protocol 0 or 1, or has more than two million objects.
    pub fn read(bytes: &'a [u8]) -> Result<Self> {
        let mut machine = Machine { bytes, ..Machine::default() };
        loop {
            let start = machine.at;
            match machine.step() {
                Ok(None) => {}
                Ok(Some(root)) => return Ok(Self { objects: machine.objects, root, length: machine.at }),
                Err(error) => bail!("damaged pickle: {error} at byte {start}"),
            }
        }
    }

    /// The elements of a list or tuple; empty for anything else.
    pub fn sequence(&self, id: Id) -> &[Id] {
        match &self.objects[id] {
            Object::Sequence(items) => items,
            _ => &[],
        }
    }

    /// The text of a string.
    pub fn text(&self, id: Id) -> Option<&'a str> {
        match self.objects[id] {
            Object::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The value of a whole number from 0.
    pub fn size(&self, id: Id) -> Option<usize> {
        match self.objects[id] {
            Object::Integer(value) => usize::try_from(value).ok(),
            _ => None,
        }
    }

    /// The name of a class or function, with its module.
    pub fn global(&self, id: Id) -> Option<(&'a str, &'a str)> {
        match self.objects[id] {
            Object::Global(module, name) => Some((module, name)),
            _ => None,
        }
    }

    /// The entries of a dictionary or of an instance of a subclass such as `OrderedDict`.
    pub fn entries(&self, id: Id) -> Option<&[(Id, Id)]> {
        match &self.objects[id] {
            Object::Dict(entries) => Some(entries),
            Object::Instance { of, entries, .. } => {
                let is_dict = self.global(*of).is_some_and(|(module, _)| module == "collections");
                (is_dict || !entries.is_empty()).then_some(entries)
            }
            _ => None,
        }
    }
}

/// The stack machine that executes a pickle.
#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    objects: Vec<Object<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack at which open sequences begin.
    marks: Vec<usize>,
    memo: HashMap<usize, Id>,
}

impl<'a> Machine<'a> {
    /// Executes an instruction. Returns the root after the last one.
    fn step(&mut self) -> Result<Option<Id>> {
        match self.take(1)?[0] {
            0x80 => {
                let protocol = self.take(1)?[0];
                ensure!((2..=5).contains(&protocol), "protocol {protocol}, expected 2 to 5");
            }
            0x95 => _ = self.take(8)?,
            b'.' => return self.pop().map(Some),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => _ = self.pop()?,
            b'1' => _ = self.since_mark()?,
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'h' => self.recall(1)?,
            b'j' => self.recall(4)?,
            b'q' => self.remember(1)?,
            b'r' => self.remember(4)?,
            0x94 => {
                let top = self.top()?;
                self.memo.insert(self.memo.len(), top);
            }
            code => self.build(code)?,
        }
        Ok(None)
    }

    /// Executes an instruction that creates or changes an object.
    fn build(&mut self, code: u8) -> Result<()> {
        let object = match code {
            b'K' => Object::Integer(self.length(1)? as i64),
            b'M' => Object::Integer(self.length(2)? as i64),
            b'J' => Object::Integer((self.length(4)? as u32 as i32).into()),
            0x8a => self.long(1)?,
            0x8b => self.long(4)?,
            0x88 => Object::Integer(1),
            0x89 => Object::Integer(0),
            b'N' => Object::Other,
            b'G' => self.skip(8)?,
            0x8c | b'U' => self.string(1)?,
            b'X' | b'T' => self.string(4)?,
            0x8d => self.string(8)?,
            b'C' => self.skip_sized(1)?,
            b'B' => self.skip_sized(4)?,
            0x8e | 0x96 => self.skip_sized(8)?,
            b']' | b')' => Object::Sequence(vec![]),
            b'l' | b't' => Object::Sequence(self.since_mark()?),
            0x85..=0x87 => Object::Sequence(self.top_items(usize::from(code - 0x84))?),
            b'}' => Object::Dict(vec![]),
            b'd' => Object::Dict(pairs(self.since_mark()?)?),
            0x8f => Object::Other,
            0x91 => {
                self.since_mark()?;
                Object::Other
            }
            b'c' => Object::Global(self.line()?, self.line()?),
            0x93 => {
                let names = self.top_items(2)?;
                match (&self.objects[names[0]], &self.objects[names[1]]) {
                    (&Object::Text(module), &Object::Text(name)) => Object::Global(module, name),
                    _ => bail!("a class without a name"),
                }
            }
            b'R' | 0x81 => self.instance(2)?,
            0x92 => self.instance(3)?,
            b'Q' => Object::Persistent(self.pop()?),
            _ => return self.change(code),
        };
        self.push(object)
    }

    /// Executes an instruction that changes the object below its operands.
    fn change(&mut self, code: u8) -> Result<()> {
        let items = match code {
            b'a' | b'b' => self.top_items(1)?,
            b's' => self.top_items(2)?,
            b'e' | b'u' | 0x90 => self.since_mark()?,
            _ => bail!("unknown instruction {code}"),
        };
        let target = self.top()?;
        match (code, &mut self.objects[target]) {
            (b'a' | b'e', Object::Sequence(elements)) => elements.extend(items),
            (b's' | b'u', Object::Dict(entries) | Object::Instance { entries, .. }) => {
                entries.extend(pairs(items)?);
            }
            (b'b' | 0x90, _) | (b'a' | b'e', Object::Instance { .. }) => {}
            _ => bail!("items for an object that holds none"),
        }
        Ok(())
    }

    /// An instance from a class and its arguments, the topmost `operands` objects.
    fn instance(&mut self, operands: usize) -> Result<Object<'a>> {
        let operands = self.top_items(operands)?;
        let (of, arguments) = (operands[0], operands[1]);
        // Old versions of Python pass the entries of an `OrderedDict` as a list of pairs.
        let mut entries = vec![];
        if let (Object::Global("collections", "OrderedDict"), Object::Sequence(list)) =
            (&self.objects[of], &self.objects[arguments])
            && let Some(&list) = list.first()
            && let Object::Sequence(list) = &self.objects[list]
        {
            for &pair in list {
                if let Object::Sequence(pair) = &self.objects[pair]
                    && let [key, value] = pair[..]
                {
                    entries.push((key, value));
                }
            }
        }
        Ok(Object::Instance { of, arguments, entries })
    }

    fn push(&mut self, object: Object<'a>) -> Result<()> {
        ensure!(self.objects.len() < MAX_OBJECTS, "more than {MAX_OBJECTS} objects");
        self.stack.push(self.objects.len());
        self.objects.push(object);
        Ok(())
    }

    /// Removes the topmost object, which must lie above the last mark.
    fn pop(&mut self) -> Result<Id> {
        Ok(self.top_items(1)?[0])
    }

    fn top(&self) -> Result<Id> {
        self.stack.last().copied().context("an instruction without operands")
    }

    /// Removes the topmost `count` objects.
    fn top_items(&mut self, count: usize) -> Result<Vec<Id>> {
        let bottom = self.marks.last().copied().unwrap_or(0);
        let start = self.stack.len().checked_sub(count).filter(|&start| start >= bottom);
        Ok(self.stack.split_off(start.context("an instruction without operands")?))
    }

    /// Removes the objects above the last mark, and the mark.
    fn since_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().context("the end of a sequence that does not begin")?;
        Ok(self.stack.split_off(mark))
    }

    fn recall(&mut self, width: usize) -> Result<()> {
        let place = self.length(width)?;
        self.stack.push(*self.memo.get(&place).context("a reference to an unknown object")?);
        Ok(())
    }

    fn remember(&mut self, width: usize) -> Result<()> {
        let place = self.length(width)?;
        self.memo.insert(place, self.top()?);
        Ok(())
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..count).context("the end of the data")?;
        self.at += count;
        Ok(taken)
    }

    /// A little-endian number of `width` bytes without a sign.
    fn length(&mut self, width: usize) -> Result<usize> {
        let bytes = self.take(width)?;
        let value = bytes.iter().rev().fold(0_u64, |value, &byte| value << 8 | u64::from(byte));
        usize::try_from(value).context("a size beyond the address space")
    }

    /// A signed number, preceded by its size of `width` bytes. Numbers of more than 64 bits are not needed.
    fn long(&mut self, width: usize) -> Result<Object<'a>> {
        let size = self.length(width)?;
        let bytes = self.take(size)?;
        if bytes.len() > 8 {
            return Ok(Object::Other);
        }
        let mut whole = [if bytes.last().is_some_and(|&byte| byte >= 0x80) { 0xff } else { 0 }; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        Ok(Object::Integer(i64::from_le_bytes(whole)))
    }

    fn string(&mut self, width: usize) -> Result<Object<'a>> {
        let size = self.length(width)?;
        Ok(std::str::from_utf8(self.take(size)?).map_or(Object::Other, Object::Text))
    }

    fn skip(&mut self, count: usize) -> Result<Object<'a>> {
        self.take(count)?;
        Ok(Object::Other)
    }

    fn skip_sized(&mut self, width: usize) -> Result<Object<'a>> {
        let size = self.length(width)?;
        self.skip(size)
    }

    fn line(&mut self) -> Result<&'a str> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|&byte| byte == b'\n').context("a name without an end")?;
        let line = std::str::from_utf8(&rest[..end]).context("a name that is not UTF-8")?;
        self.at += end + 1;
        Ok(line)
    }
}

/// Alternating keys and values as entries.
fn pairs(items: Vec<Id>) -> Result<Vec<(Id, Id)>> {
    ensure!(items.len().is_multiple_of(2), "a key without a value");
    Ok(items.chunks(2).map(|pair| (pair[0], pair[1])).collect())
}
