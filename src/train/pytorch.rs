//! The files of PyTorch's `torch.save`: a zip archive or, before version 1.6, a series of pickles.

use super::pickle::{Id, Object, Pickle};
use crate::data::file_kind::is_safetensors;
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;
use std::io::{Cursor, copy, sink};
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

/// The first bytes of a zip archive.
const ZIP: &[u8] = b"PK\x03\x04";

/// The number with which the old format begins, as a pickle holds it.
const LEGACY: &[u8] = &[0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Keys under which training programs save the weights.
const NESTED: [&str; 8] =
    ["state_dict", "model_state_dict", "model", "net", "module", "network", "model_ema", "ema"];

/// Whether `bytes` begin like a zip archive or a pickle.
pub(super) fn is_pytorch(bytes: &[u8]) -> bool {
    // The length of a header may look like the start of a pickle.
    bytes.starts_with(ZIP) || matches!(bytes, [0x80, 2..=5, ..]) && !is_safetensors(bytes)
}

/// Reads the `state_dict` of a file.
///
/// It may be nested in a dictionary, as training programs save it; if there are several, a remark names the one that is
/// read. Tensors may share storages and have any strides. Together they have at most as many elements as the file has
/// bytes.
///
/// # Errors
/// Fails if the file is truncated or damaged, or holds no `state_dict` of dense tensors. The checksums of a zip archive
/// are verified.
pub(super) fn read(bytes: &[u8]) -> Result<(HashMap<String, Tensor>, Option<String>)> {
    if bytes.starts_with(ZIP) { read_zip(bytes) } else { read_legacy(bytes) }
}

fn read_zip(bytes: &[u8]) -> Result<(HashMap<String, Tensor>, Option<String>)> {
    let damaged = |error: ZipError| anyhow::anyhow!("truncated or damaged zip archive: {error}");
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(damaged)?;
    let names: Vec<String> =
        archive.file_names().map(|name| Ok(name?.into_owned())).collect::<Result<_>>()?;
    let Some(folder) = names.iter().find_map(|name| name.strip_suffix("data.pkl")) else {
        bail!("a zip archive without data.pkl, expected one of torch.save");
    };
    let is_script = names.iter().any(|name| name.strip_prefix(folder) == Some("constants.pkl"));
    ensure!(!is_script, "a TorchScript archive, expected torch.save(model.state_dict(), ..)");
    let mut file = |name: &str| -> Result<&[u8]> {
        let mut file = archive.by_name(&format!("{folder}{name}")).map_err(damaged)?;
        let is_stored = file.compression() == CompressionMethod::Stored;
        ensure!(
            is_stored,
            "a compressed zip archive, expected the file as torch.save wrote it, which is not"
        );
        // Reading to the end verifies the checksum.
        copy(&mut file, &mut sink()).with_context(|| format!("damaged zip archive: {name}"))?;
        let start = file.data_start().and_then(|start| usize::try_from(start).ok());
        let data = start.and_then(|start| bytes.get(start..)?.get(..usize::try_from(file.size()).ok()?));
        data.with_context(|| format!("damaged zip archive: {name} lies outside it"))
    };
    if names.iter().any(|name| name.strip_prefix(folder) == Some("byteorder")) {
        ensure!(file("byteorder")? == b"little", "written on a big-endian machine, which is not supported");
    }
    let pickle = Pickle::read(file("data.pkl")?)?;
    let mut storages = HashMap::new();
    for storage in storages_of(&pickle)? {
        if !storages.contains_key(storage.key) {
            storages.insert(storage.key, file(&format!("data/{}", storage.key))?);
        }
    }
    State { pickle, storages, elements_left: bytes.len() }.read()
}

/// Reads the old format.
///
/// It is a magic number, a version, the system, the object, the keys of the storages, and the storages, each after its
/// number of elements.
fn read_legacy(bytes: &[u8]) -> Result<(HashMap<String, Tensor>, Option<String>)> {
    let mut at = 0;
    let mut next = || -> Result<Pickle> {
        let pickle = Pickle::read(&bytes[at..])?;
        at += pickle.length;
        Ok(pickle)
    };
    let is_legacy = bytes.windows(LEGACY.len()).take(32).any(|window| window == LEGACY);
    ensure!(is_legacy, "a Python pickle, expected a file of torch.save");
    next()?;
    next()?;
    let system = next()?;
    for &(key, value) in system.entries(system.root).unwrap_or_default() {
        if system.text(key) == Some("little_endian") {
            ensure!(system.size(value) == Some(1), "written on a big-endian machine, which is not supported");
        }
    }
    let (pickle, keys) = (next()?, next()?);
    let mut element_sizes = HashMap::new();
    for storage in storages_of(&pickle)? {
        element_sizes.insert(storage.key, storage.element_size);
    }
    let mut storages = HashMap::new();
    for &key in keys.sequence(keys.root) {
        let key = keys.text(key).context("damaged: a storage without a name")?;
        let truncated = || format!("truncated: storage {key} is incomplete");
        let (length, rest) = bytes[at..].split_first_chunk().with_context(truncated)?;
        let element_size =
            element_sizes.get(key).with_context(|| format!("damaged: unknown storage {key}"))?;
        let size =
            usize::try_from(u64::from_le_bytes(*length)).ok().and_then(|len| len.checked_mul(*element_size));
        let data = size.and_then(|size| rest.get(..size)).with_context(truncated)?;
        storages.insert(key, data);
        at += length.len() + data.len();
    }
    State { pickle, storages, elements_left: bytes.len() }.read()
}

/// A reference to a storage.
struct Storage<'a> {
    key: &'a str,
    kind: &'a str,
    element_size: usize,
    elements: usize,
}

/// The storages that a pickle refers to, once per reference.
fn storages_of<'a>(pickle: &Pickle<'a>) -> Result<Vec<Storage<'a>>> {
    let ids = pickle.objects.iter().filter_map(|object| match object {
        Object::Persistent(id) => Some(*id),
        _ => None,
    });
    ids.map(|id| storage(pickle, id)).collect()
}

/// The storage with the identifier `("storage", type, key, device, elements)`.
fn storage<'a>(pickle: &Pickle<'a>, id: Id) -> Result<Storage<'a>> {
    let fields = || {
        let &[_, kind, key, _, elements, ..] = pickle.sequence(id) else { return None };
        Some((pickle.global(kind)?.1, pickle.text(key)?, pickle.size(elements)?))
    };
    let (kind, key, elements) = fields().context("damaged: a storage without type, name and size")?;
    let &[.., last] = pickle.sequence(id) else { unreachable!("a storage has fields") };
    ensure!(
        pickle.sequence(last).is_empty(),
        "a view of a storage, as PyTorch saved them before version 0.4"
    );
    let element_size = match kind {
        "UntypedStorage" | "ByteStorage" | "CharStorage" | "BoolStorage" | "QInt8Storage"
        | "QUInt8Storage" => 1,
        "HalfStorage" | "BFloat16Storage" | "ShortStorage" => 2,
        "FloatStorage" | "IntStorage" | "QInt32Storage" => 4,
        "DoubleStorage" | "LongStorage" | "ComplexFloatStorage" => 8,
        "ComplexDoubleStorage" => 16,
        _ => bail!("a storage of the unknown type {kind}"),
    };
    Ok(Storage { key, kind, element_size, elements })
}

/// PyTorch's name of the type of a storage's elements.
fn type_name(kind: &str) -> &str {
    match kind {
        "CharStorage" => "int8",
        "ComplexFloatStorage" => "complex64",
        "ComplexDoubleStorage" => "complex128",
        "QInt8Storage" => "qint8",
        "QUInt8Storage" => "quint8",
        "QInt32Storage" => "qint32",
        other => other,
    }
}

/// A pickle with the bytes of its storages.
struct State<'a> {
    pickle: Pickle<'a>,
    storages: HashMap<&'a str, &'a [u8]>,
    /// The number of elements that the remaining tensors may have.
    elements_left: usize,
}

/// Tensors with their names.
type Named<'a> = Vec<(&'a str, Id)>;

impl<'a> State<'a> {
    fn read(mut self) -> Result<(HashMap<String, Tensor>, Option<String>)> {
        let mut tensors = HashMap::new();
        let (found, note) = self.tensors()?;
        for (name, id) in found {
            let tensor = self.tensor(id).with_context(|| format!("tensor {name}"))?;
            tensors.insert(name.to_string(), tensor);
        }
        Ok((tensors, note))
    }

    /// The named tensors of the `state_dict`, and a remark if it was chosen among several.
    fn tensors(&self) -> Result<(Named<'a>, Option<String>)> {
        let (mut dict, mut note) = (self.pickle.root, None);
        for _ in 0..4 {
            // A score or a random state may be beside the weights.
            let loose = self.tensors_in(dict);
            let entries = self.pickle.entries(dict).unwrap_or_default();
            let holds_more = |id: Id| match loose.is_empty() {
                true => matches!(self.pickle.objects[id], Object::Dict(_) | Object::Instance { .. }),
                false => self.holds_tensors(id),
            };
            let is_named = |name, id| self.pickle.text(id) == Some(name);
            let named = |name| entries.iter().find(|&&(key, value)| is_named(name, key) && holds_more(value));
            let with_tensors: Vec<_> =
                entries.iter().filter(|&&(_, value)| !self.tensors_in(value).is_empty()).collect();
            let texts = |entries: &[&(Id, Id)]| {
                let keys = entries.iter().filter_map(|(key, _)| self.pickle.text(*key));
                keys.map(String::from).collect::<Vec<_>>()
            };
            let known = NESTED.iter().find_map(|name| named(*name));
            let most = with_tensors.iter().map(|(_, value)| self.tensors_in(*value).len()).max();
            if known.is_none() && loose.len() >= most.unwrap_or(1) {
                return Ok((loose, note));
            }
            dict = match (known, &with_tensors[..]) {
                (Some(&(key, value)), all) => {
                    let others: Vec<_> = all.iter().copied().filter(|(other, _)| *other != key).collect();
                    if let (Some(key), false) = (self.pickle.text(key), others.is_empty()) {
                        let others = texts(&others).join(", ");
                        note = Some(format!("the weights under {key} are taken, not those under {others}"));
                    }
                    value
                }
                (None, &[&(_, value)]) => value,
                (None, []) => break,
                (None, several) => {
                    let keys = texts(several).join(", ");
                    bail!("holds the weights of several models: {keys}, expected one state_dict");
                }
            };
        }
        let expected = "expected torch.save(model.state_dict(), ..)";
        match &self.pickle.objects[dict] {
            _ if self.is_tensor(dict) => bail!("holds a single tensor, {expected}"),
            Object::Instance { of, .. } if self.pickle.entries(dict).is_none() => {
                let (module, name) = self.pickle.global(*of).unwrap_or_default();
                bail!("holds an object of the class {module}.{name}, {expected}")
            }
            _ => bail!("holds no tensors, {expected}"),
        }
    }

    /// Whether the dictionary `dict` holds tensors, directly or in a dictionary in it.
    fn holds_tensors(&self, dict: Id) -> bool {
        let entries = self.pickle.entries(dict).unwrap_or_default();
        let mut dicts = std::iter::once(dict).chain(entries.iter().map(|&(_, value)| value));
        dicts.any(|dict| !self.tensors_in(dict).is_empty())
    }

    /// The tensors that the dictionary `dict` holds directly, with their names.
    fn tensors_in(&self, dict: Id) -> Named<'a> {
        let entries = self.pickle.entries(dict).unwrap_or_default().iter();
        let tensors = entries.filter(|&&(_, value)| self.is_tensor(value));
        tensors.filter_map(|&(key, value)| Some((self.pickle.text(key)?, value))).collect()
    }

    fn is_tensor(&self, id: Id) -> bool {
        let Object::Instance { of, .. } = &self.pickle.objects[id] else { return false };
        matches!(self.pickle.global(*of), Some((module, name)) if module.starts_with("torch") && name.starts_with("_rebuild"))
    }

    fn tensor(&mut self, mut id: Id) -> Result<Tensor> {
        // Parameters and subclasses wrap a tensor.
        for _ in 0..4 {
            let Object::Instance { of, arguments, .. } = &self.pickle.objects[id] else { break };
            let (Some((_, function)), arguments) =
                (self.pickle.global(*of), self.pickle.sequence(*arguments))
            else {
                break;
            };
            match (function, arguments) {
                ("_rebuild_parameter" | "_rebuild_parameter_with_state", &[tensor, ..]) => id = tensor,
                ("_rebuild_tensor" | "_rebuild_tensor_v2", &[storage, offset, shape, strides, ..]) => {
                    return self.dense([storage, offset, shape, strides]);
                }
                _ => {
                    bail!("saved by {function}, expected a dense tensor of a floating-point or integer type")
                }
            }
        }
        bail!("damaged: not a tensor")
    }

    fn dense(&mut self, [storage_id, offset, shape, strides]: [Id; 4]) -> Result<Tensor> {
        let Object::Persistent(identifier) = self.pickle.objects[storage_id] else {
            bail!("damaged: a tensor without a storage");
        };
        let Storage { key, kind, element_size, elements } = storage(&self.pickle, identifier)?;
        let dtype = match kind {
            "FloatStorage" => DType::F32,
            "DoubleStorage" => DType::F64,
            "HalfStorage" => DType::F16,
            "BFloat16Storage" => DType::BF16,
            "LongStorage" => DType::I64,
            "IntStorage" => DType::I32,
            "ShortStorage" => DType::I16,
            "ByteStorage" | "BoolStorage" => DType::U8,
            _ => {
                bail!(
                    "found values of type {}, which is not read: convert them to a floating-point type",
                    type_name(kind)
                )
            }
        };
        let bytes = self.storages.get(key).with_context(|| format!("damaged: storage {key} is missing"))?;
        ensure!(
            elements.checked_mul(element_size) == Some(bytes.len()),
            "damaged: storage {key} has {} bytes, expected {elements} elements of {element_size}",
            bytes.len()
        );
        let numbers = |id| self.pickle.sequence(id).iter().map(|&id| self.pickle.size(id)).collect();
        let (shape, strides): (Option<Vec<usize>>, Option<Vec<usize>>) = (numbers(shape), numbers(strides));
        let (Some(shape), Some(strides), Some(offset)) = (shape, strides, self.pickle.size(offset)) else {
            bail!("damaged: shape or strides are not whole numbers");
        };
        ensure!(shape.len() == strides.len(), "damaged: {} strides for {} axes", strides.len(), shape.len());
        let count = shape.iter().try_fold(1_usize, |count, &size| count.checked_mul(size));
        let left = count.and_then(|count| self.elements_left.checked_sub(count));
        self.elements_left = left.context("more elements than the file has bytes")?;
        let layout = Layout { offset, shape: &shape, strides: &strides };
        let data =
            layout.gather(bytes, element_size).with_context(|| format!("damaged: outside storage {key}"))?;
        Ok(Tensor::from_raw_buffer(&data, dtype, &shape, &Device::Cpu)?)
    }
}

/// The positions of a tensor's elements in its storage, counted in elements.
struct Layout<'a> {
    offset: usize,
    shape: &'a [usize],
    strides: &'a [usize],
}

impl Layout<'_> {
    /// The elements in row-major order; `None` if one is outside the storage.
    fn gather(&self, storage: &[u8], element_size: usize) -> Option<Vec<u8>> {
        let count: usize = self.shape.iter().product();
        if count == 0 {
            return Some(vec![]);
        }
        let last = self.shape.iter().zip(self.strides).try_fold(self.offset, |last, (size, stride)| {
            last.checked_add((size - 1).checked_mul(*stride)?)
        })?;
        if last >= storage.len() / element_size {
            return None;
        }
        let mut data = Vec::with_capacity(count * element_size);
        let mut index = vec![0; self.shape.len()];
        let mut at = self.offset;
        // An axis of one element may have any stride.
        let strides: Vec<usize> = self
            .shape
            .iter()
            .zip(self.strides)
            .map(|(&size, &stride)| if size > 1 { stride } else { 0 })
            .collect();
        for _ in 0..count {
            data.extend_from_slice(&storage[at * element_size..][..element_size]);
            for (axis, index) in index.iter_mut().enumerate().rev() {
                *index += 1;
                at += strides[axis];
                if *index < self.shape[axis] {
                    break;
                }
                at -= *index * strides[axis];
                *index = 0;
            }
        }
        Some(data)
    }
}
