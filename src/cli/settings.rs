//! The settings of a training run: defaults, presets, the user's options, the equivalent command line.

use super::recipe::{AnyBinary, AnyRecipe, Data, PATHS, Training, fields};
use super::record::option_value;
use super::shell_quoted;
use crate::device::device_name;
use anyhow::Result;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches};
use serde_json::{Map, Value};
use std::path::Path;

/// Lets an option take a value like `-1`, so that its own parser can name the mistake.
pub(super) fn with_negative_numbers(arg: Arg) -> Arg {
    let takes_values = arg.get_action().takes_values();
    arg.allow_negative_numbers(takes_values)
}

/// Gives the options of `train` the recipe's defaults, hides options that do not apply, and refuses a repeated list.
pub(super) fn with_defaults<D>(binary: &AnyBinary<D>, command: clap::Command) -> clap::Command {
    let is_unused = |id: &str| binary.unused.contains(&id) || (id == "history_size" && !binary.full_batch);
    with_defaults_of(command, &fields(&(binary.train_defaults)()), &is_unused)
}

fn with_defaults_of(
    command: clap::Command,
    defaults: &Map<String, Value>,
    is_unused: &dyn Fn(&str) -> bool,
) -> clap::Command {
    command.mut_args(|arg| {
        let arg = with_negative_numbers(arg);
        let is_hidden = arg.is_hide_set() || is_unused(arg.get_id().as_str());
        let arg = arg.hide(is_hidden);
        // clap would append a second list to the first.
        let arg = if arg.get_value_delimiter().is_some() { arg.action(ArgAction::Set) } else { arg };
        let default = match defaults.get(arg.get_id().as_str()) {
            Some(Value::String(text)) => text.clone(),
            // Without the ".0" of JSON.
            Some(Value::Number(number)) => number.as_f64().map_or(number.to_string(), |x| x.to_string()),
            _ => return arg,
        };
        // clap keeps defaults until the process ends.
        arg.required(false).default_value(&*default.leak())
    })
}

/// The defaults of all options of `train`.
pub(super) fn defaults<D: Data>(binary: &AnyBinary<D>) -> Result<AnyRecipe<D>> {
    (binary.parse)(&matches_of(binary, &[])?)
}

/// The defaults, overridden by the preset that `settings` have.
pub(super) fn of_preset<D: Data>(
    binary: &AnyBinary<D>,
    defaults: &AnyRecipe<D>,
    settings: &AnyRecipe<D>,
) -> Result<AnyRecipe<D>> {
    let preset = settings.fields.get("preset").and_then(option_value);
    let arguments: Vec<String> = preset.into_iter().flat_map(|name| ["--preset".to_string(), name]).collect();
    let given = given(&defaults.fields, &matches_of(binary, &arguments)?);
    resolved(binary, defaults, &given)
}

/// The options of `train` that `arguments` give.
fn matches_of<D>(binary: &AnyBinary<D>, arguments: &[String]) -> Result<ArgMatches> {
    parse(with_defaults(binary, (binary.augment)(clap::Command::new(binary.name))), arguments)
}

/// Parses `arguments`, which do not begin with the name of the program.
fn parse(command: clap::Command, arguments: &[String]) -> Result<ArgMatches> {
    Ok(command.no_binary_name(true).try_get_matches_from(arguments)?)
}

/// The command that repeats `training`: the preset, and options that differ from it or the defaults.
pub(super) fn repeating<D: Data>(training: &Training<D>) -> String {
    let option = |name: &str, value: &Value| {
        let Some(text) = option_value(value) else { return vec![] };
        let flag = format!("--{}", name.replace('_', "-"));
        match value {
            Value::Bool(_) => vec![flag],
            _ if PATHS.contains(&name) => {
                let path = Path::new(&text).canonicalize().unwrap_or_else(|_| text.into());
                vec![flag, path.display().to_string()]
            }
            _ => vec![flag, text],
        }
    };
    let wanted = &training.settings.fields;
    let mut arguments = wanted.get("preset").map(|preset| option("preset", preset)).unwrap_or_default();
    let changed = wanted.iter().filter(|(name, value)| training.preset[*name] != **value);
    arguments.extend(changed.flat_map(|(name, value)| option(name, value)));
    if training.given.contains("device") {
        arguments.extend(["--device".to_string(), device_name(&training.device)]);
    }
    let arguments = arguments.iter().map(|argument| format!(" {}", shell_quoted(Path::new(argument))));
    format!("{} train{}", training.settings.binary, arguments.collect::<String>())
}

/// The arguments in `matches` that the user gave, without defaults of the `settings`.
pub(super) fn given(settings: &Map<String, Value>, matches: &ArgMatches) -> ArgMatches {
    let mut given = matches.clone();
    for name in settings.keys() {
        if matches.value_source(name) != Some(ValueSource::CommandLine) {
            // Fails only for an unknown name.
            let _ = given.try_clear_id(name);
        }
    }
    given
}

/// The defaults, overridden by the preset, overridden by the user's options.
pub(super) fn resolved<D: Data>(
    binary: &AnyBinary<D>,
    defaults: &AnyRecipe<D>,
    given: &ArgMatches,
) -> Result<AnyRecipe<D>> {
    // The first time for the name of the preset.
    let settings = (binary.update)(defaults.value(), given)?;
    let settings = (binary.apply_preset)(settings.value())?;
    (binary.update)(settings.value(), given)
}
