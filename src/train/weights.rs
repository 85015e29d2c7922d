//! Weights on disk: safetensors files and PyTorch's `state_dict` files.

use super::checksum;
use super::pytorch;
use super::run::{Run, read_file, write_file};
use crate::data::file_kind::{found_instead, known_format};
use crate::nn::seeded_var_builder;
use crate::processes::Processes;
use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Saves variables to a safetensors file, with the names and shapes of PyTorch's `state_dict`.
///
/// The file's metadata hold a checksum of the whole file, which is verified on loading. Other programs ignore it.
///
/// # Errors
/// Fails if the file cannot be written.
pub fn save_weights(path: &Path, vars: &VarMap) -> Result<()> {
    write_file(path, &checksum::serialize(named(vars), HashMap::new())?)
}

/// Name of the run's identity in the metadata of its best weights.
const RUN: &str = "run";

/// Saves the best weights of `run`, like [`save_weights`], with the run's identity in the metadata.
pub(super) fn save_best(run: &Run, vars: &VarMap) -> Result<()> {
    let metadata = HashMap::from([(RUN.to_string(), run.id().to_string())]);
    write_file(&run.model(), &checksum::serialize(named(vars), metadata)?)
}

/// The best weights of a training without a run folder.
pub(super) struct Best(BTreeMap<String, Tensor>);

impl Best {
    /// Copies the weights.
    pub(super) fn new(vars: &VarMap) -> Result<Self> {
        let copies = named(vars).into_iter().map(|(name, tensor)| Ok((name, tensor.detach().copy()?)));
        copies.collect::<Result<_>>().map(Self)
    }

    /// Copies the weights back.
    pub(super) fn restore(&self, vars: &VarMap) -> Result<()> {
        let vars = vars.data().lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for (name, var) in vars.iter() {
            if let Some(tensor) = self.0.get(name) {
                var.set(tensor)?;
            }
        }
        Ok(())
    }
}

/// Sends the values of the variables with `chosen` names from process 0 to all processes.
pub(super) fn broadcast(
    processes: &dyn Processes,
    vars: &VarMap,
    chosen: impl Fn(&str) -> bool,
) -> Result<()> {
    let mut own = named(vars);
    own.retain(|name, _| chosen(name));
    if own.is_empty() {
        return Ok(());
    }
    let is_first = processes.rank() == 0;
    let bytes = if is_first { safetensors::serialize(&own, None)? } else { vec![] };
    let bytes = processes.broadcast(bytes)?;
    if !is_first {
        let found = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?;
        let vars = vars.data().lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for (name, values) in found {
            let var = vars
                .get(&name)
                .with_context(|| format!("process 0 has the parameter {name}, but this process does not"))?;
            var.set(&values.to_device(var.device())?)?;
        }
    }
    Ok(())
}

/// Reads the best weights of `run`, and returns whether they name it as their run.
///
/// # Errors
/// Fails if they are missing, damaged or another run's. Weights that another program wrote name no run and are
/// accepted.
pub(super) fn read_best(run: &Run) -> Result<(HashMap<String, Tensor>, bool)> {
    let path = run.model();
    let bytes = read_file(&path)?;
    let tensors = read_tensors(&path, &bytes)?;
    let owner = owner(&bytes)?;
    if let Some(owner) = owner.as_ref().filter(|&owner| owner != run.id()) {
        let (dir, id) = (run.dir().display(), run.id());
        bail!("{}: these are the weights of another run, {owner}; {dir} is the run {id}", path.display());
    }
    Ok((tensors, owner.is_some()))
}

/// Returns the identity of the run that wrote a safetensors file, if its contents `bytes` name one.
fn owner(bytes: &[u8]) -> Result<Option<String>> {
    let (_, header) = safetensors::SafeTensors::read_metadata(bytes)?;
    Ok(header.metadata().as_ref().and_then(|metadata| metadata.get(RUN).cloned()))
}

/// Returns a checksum of the values, names and shapes of all variables.
///
/// # Errors
/// Fails if the device cannot copy a tensor.
pub fn weights_checksum(vars: &VarMap) -> Result<String> {
    Ok(checksum::checksum(&safetensors::serialize(named(vars), None)?))
}

/// Returns a checksum of the variables of two or more dimensions, such as weights and embeddings, if there are any.
pub(super) fn matrices_checksum(vars: &VarMap) -> Result<Option<String>> {
    let mut matrices = named(vars);
    matrices.retain(|_, tensor| tensor.rank() >= 2);
    match matrices.is_empty() {
        true => Ok(None),
        false => Ok(Some(checksum::checksum(&safetensors::serialize(matrices, None)?))),
    }
}

/// Loads the weights of a safetensors file into variables.
///
/// # Errors
/// Fails if the file cannot be read, is not safetensors or does not match its checksum, or if its names, shapes and
/// types differ from the variables'. No variable changes then.
pub fn load_weights(path: &Path, vars: &VarMap) -> Result<()> {
    set_vars(path, vars, &read_tensors(path, &read_file(path)?)?)
}

/// The outcome of loading pretrained weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pretrained {
    /// Whether the model's last layer was loaded, too.
    pub has_head: bool,
    /// Remarks about the file for the user, one line each.
    pub notes: Vec<String>,
}

/// Loads pretrained weights into variables.
///
/// The file holds safetensors or was written by PyTorch's `torch.save`, as its content shows, not its name. The weights
/// may be nested in a dictionary, under the key `state_dict`, `model_state_dict` or `model`. A prefix `module.` or
/// `_orig_mod.` of all names is dropped. So is, with a note, any other prefix that no name of the model has.
/// Floating-point types are converted. The model's last layer, `head`, keeps its values if the file lacks it or has it
/// for another number of classes. With the name `""`, all weights must fit.
///
/// # Errors
/// Fails if the file cannot be read, is damaged or has another format, if the weights outside `head` do not fit `vars`, or
/// if one is NaN or infinite.
pub fn load_pretrained(path: &Path, vars: &VarMap, head: &str) -> Result<Pretrained> {
    let bytes = read_file(path)?;
    let (found, chosen) = if pytorch::is_pytorch(&bytes) {
        pytorch::read(&bytes).map_err(|error| anyhow!("{}: {error:#}", path.display()))?
    } else {
        (read_tensors(path, &bytes)?, None)
    };
    let own = named(vars);
    let (found, prefix) = without_prefixes(found, &own);
    let mut notes: Vec<String> =
        chosen.map(|note| format!("{}: {note}", path.display())).into_iter().collect();
    notes.extend(
        prefix.map(|prefix| format!("{}: the prefix {prefix} of all names is dropped", path.display())),
    );
    let mut found = without_batch_counts(found);
    for (name, own) in &own {
        if let Some(tensor) = found.get_mut(name)
            && tensor.dtype().is_float()
        {
            *tensor = tensor.to_dtype(own.dtype())?;
        }
    }
    let head = format!("{head}.");
    let own: HashMap<_, _> = own.into_iter().filter(|(name, _)| name.starts_with(&head)).collect();
    let fits = |(name, own): (&String, &Tensor)| found.get(name).is_some_and(|x| x.shape() == own.shape());
    let loads_head = own.iter().all(fits);
    if !loads_head {
        found.retain(|name, _| !name.starts_with(&head));
        for (name, own) in own {
            found.insert(name, own.copy()?);
        }
    }
    for (name, tensor) in
        found.iter().filter(|(_, tensor)| tensor.dtype().is_float()).collect::<BTreeMap<_, _>>()
    {
        let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        if let Some(value) = values.into_iter().find(|value| !value.is_finite()) {
            bail!("{}: parameter {name} holds {value}, expected finite numbers", path.display());
        }
    }
    set_vars(path, vars, &found)?;
    Ok(Pretrained { has_head: loads_head, notes })
}

/// Drops prefixes that all names share but no name of the model has.
///
/// `DataParallel` and `torch.compile` add such prefixes. If it drops another one, such as `model.`, it returns that.
fn without_prefixes(
    mut tensors: HashMap<String, Tensor>,
    own: &BTreeMap<String, Tensor>,
) -> (HashMap<String, Tensor>, Option<String>) {
    let mut other = None;
    loop {
        let first =
            tensors.keys().next().and_then(|name| name.split_inclusive('.').next()).unwrap_or_default();
        let prefix = first.to_string();
        let is_common = prefix.ends_with('.') && tensors.keys().all(|name| name.starts_with(&prefix));
        let is_wrapper = ["module.", "_orig_mod."].contains(&&*prefix);
        if !is_common || (!is_wrapper && own.keys().any(|name| name.starts_with(&prefix))) {
            return (tensors, other);
        }
        if !is_wrapper {
            other = Some(other.unwrap_or_default() + &prefix);
        }
        let name_of = |name: String| name[prefix.len()..].to_string();
        tensors = tensors.into_iter().map(|(name, tensor)| (name_of(name), tensor)).collect();
    }
}

/// Builds a model for inference with the best weights of `run`, and returns whether they name the run.
///
/// Weights that another program wrote do not name it, and are accepted. The parameters are plain tensors, not
/// variables, so a forward pass records no graph. They are f32, or f64 if the run was trained in f64. `build` returns
/// candle's `Result`, like the constructors of layers.
///
/// # Errors
/// Fails if `build` or [`load_weights`] does, the weights are another run's, or one of them is NaN.
pub fn load_model<M>(
    run: &Run,
    device: &Device,
    build: impl Fn(VarBuilder) -> candle_core::Result<M>,
) -> Result<(M, bool)> {
    let path = run.model();
    let vars = VarMap::new();
    let (best, names_run) = read_best(run)?;
    let dtype =
        if best.values().all(|tensor| tensor.dtype() == DType::F64) { DType::F64 } else { DType::F32 };
    build(seeded_var_builder(&vars, 0, dtype, device))?;
    set_vars(&path, &vars, &best)?;
    let mut tensors = HashMap::new();
    for (name, tensor) in named(&vars) {
        let is_nan = tensor.ne(&tensor)?.flatten_all()?.to_vec1::<u8>()?.contains(&1);
        ensure!(!is_nan, "{}: the parameter {name} is NaN, so the model can't be used", path.display());
        tensors.insert(name, tensor.detach());
    }
    Ok((build(VarBuilder::from_tensors(tensors, dtype, device))?, names_run))
}

/// Returns the values of all variables, sorted by name.
pub(super) fn named(vars: &VarMap) -> BTreeMap<String, Tensor> {
    let vars = vars.data().lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect()
}

/// Reads the tensors of a safetensors file with the contents `bytes`, and verifies its checksum.
///
/// A file without a checksum is accepted.
pub(super) fn read_tensors(path: &Path, bytes: &[u8]) -> Result<HashMap<String, Tensor>> {
    let found = candle_core::safetensors::load_buffer(bytes, &Device::Cpu).map_err(|_| {
        let path = path.display();
        let is_text = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
        let known = known_format(bytes).is_some_and(|(name, _)| name != "a safetensors file");
        match found_instead(bytes, "weights").filter(|_| known) {
            Some(other) => anyhow!("{path}: {other}"),
            None if bytes.starts_with(b"{") => anyhow!("{path}: found a JSON file, expected weights"),
            None if bytes.len() > 8 && bytes.iter().take(64).all(is_text) => {
                anyhow!("{path}: found a text file, expected weights")
            }
            None => anyhow!(
                "{path}: not a complete safetensors file ({} bytes): truncated, damaged or of another format",
                bytes.len()
            ),
        }
    })?;
    checksum::verify(path, bytes)?;
    Ok(without_batch_counts(found))
}

/// Drops PyTorch's batch counters, which batch normalisation does not use here.
fn without_batch_counts(mut tensors: HashMap<String, Tensor>) -> HashMap<String, Tensor> {
    tensors.retain(|name, _| !name.ends_with(".num_batches_tracked"));
    tensors
}

/// Sets the variables to `tensors`, which must have exactly the same names, shapes and types.
pub(super) fn set_vars(path: &Path, vars: &VarMap, tensors: &HashMap<String, Tensor>) -> Result<()> {
    let path = path.display();
    let vars = vars.data().lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let expected: BTreeMap<_, _> = vars.iter().collect();
    for (name, var) in &expected {
        let shape = var.dims();
        match tensors.get(*name) {
            None => {
                let others = tensors.keys().filter(|name| !vars.contains_key(*name));
                let others = others.min().map_or(String::new(), |other| format!("; found {other} instead"));
                bail!("{path}: parameter {name} is missing, expected one of shape {shape:?}{others}")
            }
            Some(tensor) if tensor.dims() != shape => {
                bail!("{path}: parameter {name} has shape {:?}, expected {shape:?}", tensor.dims())
            }
            Some(tensor) if tensor.dtype() != var.dtype() => {
                let [found, expected] = [tensor.dtype(), var.dtype()].map(|dtype| dtype.as_str());
                bail!("{path}: parameter {name} has type {found}, expected {expected}")
            }
            Some(_) => {}
        }
    }
    if let Some(name) = tensors.keys().filter(|name| !vars.contains_key(*name)).min() {
        let shape = tensors[name].dims();
        bail!("{path}: found a parameter {name} of shape {shape:?}, which this model does not have");
    }
    for (name, var) in expected {
        var.set(&tensors[name].to_device(var.device())?)?;
    }
    Ok(())
}
