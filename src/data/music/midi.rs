//! MIDI files: reading with quantisation, and writing.

use super::musicxml::{EXPORT, is_musicxml};
use super::piece::{KEYS, Metre, Note, Piece, Tonality};
use crate::data::count;
use crate::data::file_kind::{check_is_file, found_instead};
use anyhow::{Context, Result, bail, ensure};
use midly::num::{u4, u7, u15, u24, u28};
use midly::{Format, Header, MetaMessage, MidiMessage, Smf, Timing, Track, TrackEvent, TrackEventKind};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;
use std::path::Path;

/// The channel of drums, counted from 0.
const DRUMS: u8 = 9;
/// The largest number of notes, and of time steps, of a file; larger files are not music.
const MAX_NOTES: usize = 200_000;
const MAX_STEPS: u64 = 200_000;
/// Ticks per quarter note in the files written here.
const TICKS: usize = 480;

/// The notes and bytes of a MIDI file that did not fit its time steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quantisation {
    /// Number of notes.
    pub notes: usize,
    /// Notes whose start or end was moved by more than a tenth of a step.
    pub moved: usize,
    /// Notes that were shorter than half a step and were lengthened to one.
    pub lengthened: usize,
    /// Notes that were left out because they are outside the piano's keys.
    pub out_of_range: usize,
    /// Notes of drums, which were left out.
    pub drums: usize,
    /// Notes without an end, which were held to the end of their track.
    pub endless: usize,
    /// Bytes after the last chunk, which were skipped.
    pub trailing: usize,
}

impl AddAssign for Quantisation {
    fn add_assign(&mut self, other: Self) {
        self.notes += other.notes;
        self.moved += other.moved;
        self.lengthened += other.lengthened;
        self.out_of_range += other.out_of_range;
        self.drums += other.drums;
        self.endless += other.endless;
        self.trailing += other.trailing;
    }
}

impl Quantisation {
    /// Describes what did not fit; `None` if everything did.
    pub fn report(&self) -> Option<String> {
        let parts = [
            (self.moved, "moved by more than a tenth of a step"),
            (self.lengthened, "lengthened to a step"),
            (self.out_of_range, "outside the piano's keys left out"),
            (self.drums, "of drums left out"),
            (self.endless, "without an end held to the end of the track"),
        ];
        let parts: Vec<String> = parts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        let notes =
            (!parts.is_empty()).then(|| format!("of {}, {}", count(self.notes, "note"), parts.join(", ")));
        let bytes = (self.trailing > 0)
            .then(|| format!("{} after the last chunk passed over", count(self.trailing, "byte")));
        let all: Vec<String> = notes.into_iter().chain(bytes).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}

/// Reads a MIDI file of format 0 or 1 into time steps.
///
/// A step is a quarter note divided by `steps_per_quarter`. If the file has two to eight tracks or channels with one
/// note at a time, these become voices. Drums, on channel 10, are left out.
///
/// # Errors
/// Fails if the file cannot be read, is not a complete MIDI file of format 0 or 1 with times in ticks per quarter note, has
/// no notes within the piano's keys, or more than 200,000 notes or steps.
pub fn read_midi(path: &Path, steps_per_quarter: usize) -> Result<(Piece, Quantisation)> {
    check_is_file(path)?;
    let bytes = std::fs::read(path).with_context(|| format!("{}: cannot read it", path.display()))?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    parse(&bytes, &name, steps_per_quarter).with_context(|| path.display().to_string())
}

/// A MIDI file is complete but has no notes on the piano's keys.
#[derive(Debug)]
pub(super) struct NoNotes {
    /// Whether it has drums or other pitches.
    has_others: bool,
}

impl fmt::Display for NoNotes {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (first, last) = (KEYS.start(), KEYS.end());
        match self.has_others {
            true => write!(
                f,
                "found no notes on the piano's keys, only drums or pitches outside {first} to {last}"
            ),
            false => write!(f, "found no notes, expected a piece of music"),
        }
    }
}

impl std::error::Error for NoNotes {}

/// A note in ticks, in the part of a track and channel.
struct Timed {
    part: (usize, u8),
    pitch: u8,
    start: u64,
    end: u64,
}

/// The content of a MIDI file.
#[derive(Default)]
struct Contents {
    notes: Vec<Timed>,
    drums: usize,
    endless: usize,
    metres: BTreeMap<u64, Metre>,
    tempo: Option<f64>,
    tonality: Option<Tonality>,
}

impl Contents {
    /// Adds the note that a message of `channel` ends. `open` has the starts of the keys that are held down.
    ///
    /// # Errors
    /// Fails if there are too many notes.
    fn strike(
        &mut self,
        (track, channel): (usize, u8),
        message: MidiMessage,
        now: u64,
        open: &mut BTreeMap<(u8, u8), u64>,
    ) -> Result<()> {
        let (pitch, is_on) = match message {
            MidiMessage::NoteOn { key, vel } => (key.as_int(), vel > 0),
            MidiMessage::NoteOff { key, .. } => (key.as_int(), false),
            _ => return Ok(()),
        };
        if channel == DRUMS {
            self.drums += usize::from(is_on);
            return Ok(());
        }
        // A key that is struck again ends the note before.
        if let Some(start) = open.remove(&(channel, pitch)) {
            self.notes.push(Timed { part: (track, channel), pitch, start, end: now });
        }
        if is_on {
            open.insert((channel, pitch), now);
        }
        ensure!(
            self.notes.len() + self.drums <= MAX_NOTES,
            "found more than {MAX_NOTES} notes, expected a piece of music"
        );
        Ok(())
    }
}

/// The MIDI file in a RIFF container, or `bytes` if it is not one.
fn unwrapped(bytes: &[u8]) -> &[u8] {
    let is_wrapped = bytes.starts_with(b"RIFF") && bytes.get(8..16) == Some(b"RMIDdata");
    bytes.get(20..).filter(|_| is_wrapped).unwrap_or(bytes)
}

fn parse(bytes: &[u8], name: &str, steps_per_quarter: usize) -> Result<(Piece, Quantisation)> {
    let bytes = unwrapped(bytes);
    let (bytes, trailing) = bytes.split_at(whole_chunks(bytes)?);
    let smf =
        Smf::parse(bytes).map_err(|_| anyhow::anyhow!("not a MIDI file: damaged, or of another format"))?;
    ensure!(
        smf.header.format != Format::Sequential,
        "found a MIDI file of format 2, which holds several pieces, expected format 0 or 1"
    );
    let Timing::Metrical(ticks) = smf.header.timing else {
        bail!("found times in frames per second, expected ticks per quarter note");
    };
    let ticks = u64::from(ticks.as_int());
    ensure!(ticks > 0, "found 0 ticks per quarter note, expected at least 1");
    let contents = contents(&smf)?;
    let grid = Grid { ticks, steps: steps_per_quarter as u64 };
    let (piece, report) = quantised(contents, grid, name)?;
    Ok((piece, Quantisation { trailing: trailing.len(), ..report }))
}

/// Checks that the file's chunks are complete, which the parser does not, and returns their length.
fn whole_chunks(bytes: &[u8]) -> Result<usize> {
    ensure!(!bytes.is_empty(), "the file is empty, expected a MIDI file");
    if !bytes.starts_with(b"MThd")
        && let Some(other) = found_instead(bytes, "a MIDI file")
    {
        let remedy = if is_musicxml(bytes) { format!(": {EXPORT}") } else { String::new() };
        bail!("not a MIDI file: {other}{remedy}");
    }
    ensure!(
        bytes.starts_with(b"MThd") && bytes.len() >= 14,
        "not a MIDI file: it does not start with its header"
    );
    let declared = u16::from_be_bytes([bytes[10], bytes[11]]);
    let (mut rest, mut tracks) = (bytes, 0);
    while rest.len() >= 8 {
        let length = u32::from_be_bytes([rest[4], rest[5], rest[6], rest[7]]) as usize;
        let found = rest.len() - 8;
        let is_chunk =
            rest.starts_with(b"MTrk") || rest[..4].iter().all(u8::is_ascii_alphanumeric) && length <= found;
        if tracks >= declared && !is_chunk {
            break;
        }
        ensure!(
            length <= found,
            "the file is truncated: found {} of a chunk, expected {length}",
            count(found, "byte")
        );
        tracks += u16::from(rest.starts_with(b"MTrk"));
        rest = &rest[8 + length..];
    }
    ensure!(
        tracks >= declared,
        "the file is truncated: found {}, expected {declared}",
        count(usize::from(tracks), "track")
    );
    Ok(bytes.len() - rest.len())
}

/// Collects notes and signatures of all tracks.
fn contents(smf: &Smf) -> Result<Contents> {
    let mut contents = Contents::default();
    for (track, events) in smf.tracks.iter().enumerate() {
        let (mut now, mut open) = (0, BTreeMap::<(u8, u8), u64>::new());
        for event in events {
            now += u64::from(event.delta.as_int());
            match event.kind {
                TrackEventKind::Midi { channel, message } => {
                    contents.strike((track, channel.as_int()), message, now, &mut open)?;
                }
                TrackEventKind::Meta(MetaMessage::Tempo(micros)) if contents.tempo.is_none() => {
                    contents.tempo = Some(6e7 / f64::from(micros.as_int().max(1)));
                }
                TrackEventKind::Meta(MetaMessage::TimeSignature(beats, power, ..))
                    if beats > 0 && power <= 6 =>
                {
                    contents.metres.insert(now, Metre { beats, unit: 1 << power });
                }
                TrackEventKind::Meta(MetaMessage::KeySignature(sharps, minor))
                    if contents.tonality.is_none() =>
                {
                    contents.tonality = Tonality::from_signature(sharps, minor);
                }
                _ => {}
            }
        }
        contents.endless += open.len();
        contents.notes.extend(open.into_iter().map(|((channel, pitch), start)| Timed {
            part: (track, channel),
            pitch,
            start,
            end: now,
        }));
    }
    Ok(contents)
}

/// The conversion of ticks to steps.
#[derive(Clone, Copy)]
struct Grid {
    ticks: u64,
    steps: u64,
}

impl Grid {
    /// The nearest step.
    fn step(self, tick: u64) -> u64 {
        (2 * tick * self.steps + self.ticks) / (2 * self.ticks)
    }

    /// Whether `tick` is more than a tenth of a step from the nearest one.
    fn is_off(self, tick: u64) -> bool {
        (tick * self.steps).abs_diff(self.step(tick) * self.ticks) * 10 > self.ticks
    }
}

fn quantised(contents: Contents, grid: Grid, name: &str) -> Result<(Piece, Quantisation)> {
    let Contents { notes, drums, endless, metres, tempo, tonality } = contents;
    let mut report = Quantisation { notes: notes.len() + drums, drums, endless, ..Quantisation::default() };
    // The notes of each part at each step.
    let mut parts: BTreeMap<(usize, u8), BTreeMap<usize, Vec<Note>>> = BTreeMap::new();
    let mut length = 0;
    for Timed { part, pitch, start, end } in notes {
        if !KEYS.contains(&pitch) {
            report.out_of_range += 1;
            continue;
        }
        let first = grid.step(start);
        let last = grid.step(end).max(first + 1);
        report.lengthened += usize::from(grid.step(end) == first);
        report.moved += usize::from(grid.is_off(start) || (grid.step(end) > first && grid.is_off(end)));
        ensure!(last <= MAX_STEPS, "found more than {MAX_STEPS} time steps, expected a piece of music");
        length = length.max(last as usize);
        let part = parts.entry(part).or_default();
        for step in first..last {
            let sounding = part.entry(step as usize).or_default();
            let held = step > first;
            match sounding.iter_mut().find(|note| note.pitch == pitch) {
                Some(other) => other.held &= held,
                None => sounding.push(Note { pitch, held }),
            }
        }
    }
    ensure!(!parts.is_empty(), NoNotes { has_others: report.notes > 0 });
    let is_voice = |part: &BTreeMap<usize, Vec<Note>>| part.values().all(|notes| notes.len() == 1);
    let has_voices = (2..=8).contains(&parts.len()) && parts.values().all(is_voice);
    let mut parts: Vec<_> = parts.into_values().collect();
    let mean = |part: &BTreeMap<usize, Vec<Note>>| {
        part.values().flatten().map(|note| f64::from(note.pitch)).sum::<f64>() / part.len() as f64
    };
    parts.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
    let notes_at = |step: usize| -> Vec<Option<Note>> {
        match has_voices {
            true => parts.iter().map(|part| part.get(&step).map(|notes| notes[0])).collect(),
            false => parts.iter().filter_map(|part| part.get(&step)).flatten().copied().map(Some).collect(),
        }
    };
    let mut metres: Vec<(usize, Metre)> =
        metres.into_iter().map(|(tick, metre)| (grid.step(tick) as usize, metre)).collect();
    metres.reverse();
    metres.dedup_by_key(|(step, _)| *step);
    metres.reverse();
    metres.retain(|(step, _)| *step < length);
    if metres.first().is_none_or(|(step, _)| *step > 0) {
        // The default of the format.
        metres.insert(0, (0, Metre { beats: 4, unit: 4 }));
    }
    let piece = Piece {
        name: name.to_string(),
        steps: (0..length).map(notes_at).collect(),
        voices: has_voices.then_some(parts.len()),
        steps_per_quarter: grid.steps as usize,
        metres,
        tonality,
        style: None,
        tempo: tempo.unwrap_or(120.0),
    };
    Ok((if has_voices { piece } else { piece.without_voices() }, report))
}

/// Returns `piece` as a MIDI file of format 1, with one track per voice.
pub fn write_midi(piece: &Piece) -> Vec<u8> {
    let tick = |step: usize| (step * TICKS / piece.steps_per_quarter) as u32;
    let name = piece.name.as_bytes();
    let mut conductor = vec![
        (0, TrackEventKind::Meta(MetaMessage::TrackName(name))),
        (0, TrackEventKind::Meta(MetaMessage::Tempo(u24::new((6e7 / piece.tempo) as u32)))),
    ];
    if let Some(key) = piece.tonality {
        conductor.push((0, TrackEventKind::Meta(MetaMessage::KeySignature(key.signature(), key.minor))));
    }
    for &(step, Metre { beats, unit }) in &piece.metres {
        let power = unit.trailing_zeros() as u8;
        conductor.push((tick(step), TrackEventKind::Meta(MetaMessage::TimeSignature(beats, power, 24, 8))));
    }
    let mut tracks = vec![track(conductor)];
    let spans = piece.spans();
    for voice in 0..piece.voices.unwrap_or(1) {
        let channel = u4::new((if voice < usize::from(DRUMS) { voice } else { voice + 1 } % 16) as u8);
        let event = |message| TrackEventKind::Midi { channel, message };
        let mut events = vec![(0, event(MidiMessage::ProgramChange { program: u7::new(0) }))];
        for span in spans.iter().filter(|span| span.voice == voice) {
            let key = u7::new(span.pitch);
            events.push((tick(span.start), event(MidiMessage::NoteOn { key, vel: u7::new(80) })));
            events
                .push((tick(span.start + span.steps), event(MidiMessage::NoteOff { key, vel: u7::new(0) })));
        }
        tracks.push(track(events));
    }
    let header = Header::new(Format::Parallel, Timing::Metrical(u15::new(TICKS as u16)));
    let mut bytes = vec![];
    // Writing to a vector can't fail.
    let _ = Smf { header, tracks }.write_std(&mut bytes);
    bytes
}

/// A track of events at absolute times. At the same time, notes end before others begin.
fn track<'a>(mut events: Vec<(u32, TrackEventKind<'a>)>) -> Track<'a> {
    let is_on = |kind: &TrackEventKind| {
        matches!(kind, TrackEventKind::Midi { message: MidiMessage::NoteOn { .. }, .. })
    };
    events.sort_by_key(|(tick, kind)| (*tick, is_on(kind)));
    let mut last = 0;
    let mut track: Track = events
        .into_iter()
        .map(|(tick, kind)| {
            let delta = u28::new(tick - last);
            last = tick;
            TrackEvent { delta, kind }
        })
        .collect();
    track.push(TrackEvent { delta: u28::new(0), kind: TrackEventKind::Meta(MetaMessage::EndOfTrack) });
    track
}

#[cfg(test)]
mod tests {
    use super::super::chorales;
    use super::*;

    fn error(bytes: &[u8]) -> String {
        let error = format!("{:#}", parse(bytes, "test", 2).unwrap_err());
        assert!(!error.contains('\n'), "{error}");
        error
    }

    /// A file with these tracks, of events after delta times, with 4 ticks per quarter note.
    fn file(format: u16, tracks: &[&[&[u8]]]) -> Vec<u8> {
        let mut bytes = b"MThd\0\0\0\x06".to_vec();
        bytes.extend([format, tracks.len() as u16, 4].iter().flat_map(|number| number.to_be_bytes()));
        for events in tracks {
            let events = [&events.concat()[..], b"\0\xff\x2f\0"].concat();
            bytes.extend(b"MTrk");
            bytes.extend((events.len() as u32).to_be_bytes());
            bytes.extend(events);
        }
        bytes
    }

    #[test]
    fn bytes_after_the_last_chunk_are_passed_over_with_a_remark() -> Result<()> {
        let whole = write_midi(&chorales(1, 0, 0, 3).train[0]);
        let wrapped = [b"RIFF\0\0\0\0RMIDdata\0\0\0\0", &whole[..]].concat();
        assert_eq!(parse(&wrapped, "", 2).unwrap().0, parse(&whole, "", 2).unwrap().0);
        for trailing in [&b"\0\0\0"[..], &[0xff; 100], &[0; 20]] {
            let (piece, report) = parse(&[&whole[..], trailing].concat(), "test", 2)?;
            assert_eq!((piece, report.trailing), (parse(&whole, "test", 2)?.0, trailing.len()));
            assert!(report.report().unwrap().contains("bytes after the last chunk"));
        }
        Ok(())
    }

    #[test]
    fn a_written_piece_reads_back_the_same() -> Result<()> {
        for piece in chorales(4, 0, 0, 3).train {
            let (found, report) = parse(&write_midi(&piece), &piece.name, 2)?;
            assert_eq!(report.report(), None);
            assert_eq!(found, Piece { style: None, tempo: found.tempo, ..piece.clone() });
            assert!((found.tempo - piece.tempo).abs() < 0.01);
            let set = piece.without_voices();
            let (found, _) = parse(&write_midi(&set), &set.name, 2)?;
            assert_eq!(found.steps, set.steps);
        }
        Ok(())
    }

    #[test]
    fn running_status_changes_of_metre_and_drums_are_understood() -> Result<()> {
        let conductor: &[&[u8]] = &[
            b"\0\xff\x51\x03\x0f\x42\x40",
            b"\0\xff\x58\x04\x03\x02\x18\x08",
            b"\x0c\xff\x58\x04\x02\x02\x18\x08",
        ];
        // c for a quarter, then d and f for three, in running status; note-on with velocity 0 ends a note.
        let notes: &[&[u8]] =
            &[b"\0\x90\x3c\x40", b"\x04\x3c\0", b"\0\x3e\x40", b"\0\x41\x40", b"\x0c\x3e\0", b"\0\x41\0"];
        let drums: &[&[u8]] = &[b"\0\x99\x24\x40", b"\x01\x24\0"];
        let (piece, report) = parse(&file(1, &[conductor, notes, drums]), "test", 1)?;
        assert_eq!(
            (0..4).map(|step| piece.chord(step)).collect::<Vec<_>>(),
            [vec![60], vec![62, 65], vec![62, 65], vec![62, 65]]
        );
        assert_eq!((piece.tempo, piece.len(), piece.voices), (60.0, 4, None));
        assert_eq!(piece.place(3), Some((Metre { beats: 2, unit: 4 }, 1, 0)));
        assert_eq!(report.report().unwrap(), "of 4 notes, 1 of drums left out");
        Ok(())
    }

    #[test]
    fn files_of_other_programs_are_read() -> Result<()> {
        for name in ["mido.mid", "pretty_midi.mid"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
            let (piece, report) = read_midi(&path, 2)?;
            let spans: Vec<_> = piece.spans().iter().map(|s| (s.voice, s.pitch, s.start, s.steps)).collect();
            let upper = [(0, 67, 0, 2), (0, 69, 2, 1), (0, 70, 3, 1), (0, 72, 4, 2), (0, 74, 6, 4)];
            assert_eq!(spans, [&upper[..], &[(1, 55, 0, 6), (1, 50, 6, 4)]].concat(), "{name}");
            assert_eq!((piece.tonality, piece.tempo), (Some("g".parse().unwrap()), 80.0), "{name}");
            assert_eq!(piece.metres, [(0, Metre { beats: 3, unit: 4 }), (6, Metre { beats: 2, unit: 4 })]);
            assert_eq!(report, Quantisation { notes: 8, drums: 1, ..Quantisation::default() }, "{name}");
        }
        Ok(())
    }

    #[test]
    fn what_does_not_fit_the_steps_is_reported() -> Result<()> {
        // One tick is half a step: the first note is too short, the second starts between steps, the third is too low,
        // the fourth never ends.
        let notes: &[&[u8]] = &[
            b"\0\x90\x3c\x40",
            b"\0\x3c\0",
            b"\x03\x3e\x40",
            b"\x03\x3e\0",
            b"\0\x05\x40",
            b"\0\x43\x40",
            b"\x04\x05\0",
        ];
        let (piece, report) = parse(&file(0, &[notes]), "test", 2)?;
        let expected = Quantisation {
            notes: 4,
            moved: 1,
            lengthened: 1,
            out_of_range: 1,
            endless: 1,
            drums: 0,
            trailing: 0,
        };
        assert_eq!((report, piece.chord(0), piece.chord(2)), (expected, vec![60], vec![62]));
        assert!(report.report().unwrap().ends_with("1 without an end held to the end of the track"));
        Ok(())
    }

    #[test]
    fn files_that_are_no_pieces_are_refused_in_one_line() {
        let note: &[&[u8]] = &[b"\0\x90\x3c\x40", b"\x04\x3c\0"];
        assert!(error(b"").contains("empty"));
        assert!(error(b"RIFFxxxxxxxxxxxx").contains("not a MIDI file"));
        assert!(error(&file(2, &[note])).contains("format 2"));
        assert!(error(&file(1, &[&[]])).contains("no notes"));
        assert!(error(&file(0, &[&[b"\0\x99\x24\x40"]])).contains("only drums"));
        let whole = file(1, &[note, note]);
        assert!(error(&whole[..whole.len() - 5]).contains("truncated"));
        assert!(error(&whole[..20]).contains("truncated"));
        let many: Vec<&[u8]> =
            std::iter::once(note[0]).chain(std::iter::repeat_n(&b"\x01\x3c\x40"[..], 1_000_000)).collect();
        assert!(error(&file(0, &[&many])).contains("more than 200000 notes"));
        assert!(error(&file(0, &[&[b"\0\x90\x3c\x40", b"\xff\xff\xff\x7f\x3c\0"]])).contains("time steps"));
        let mut frames = file(0, &[note]);
        frames[12] = 0xe8;
        assert!(error(&frames).contains("frames per second"));
    }
}
