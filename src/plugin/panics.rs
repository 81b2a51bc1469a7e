//! Where a plugin in Rust has panicked: a panic does not carry its place. A plugin has a standard library of its own, and so
//! its own hook, its own standard error and its own thread-local values.

use std::cell::Cell;
use std::fmt::{self, Write};
use std::panic::{set_hook, take_hook};
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant};

/// Of panics standard error gets at most one in that time: the server's log has them all, counted.
const BETWEEN_PRINTS: Duration = Duration::from_secs(1);

/// A place in the source, cut where it does not fit. It owns nothing: a library with a thread-local value that has to be
/// dropped is never unloaded while the thread lives.
#[derive(Clone, Copy)]
struct Place {
    text: [u8; 256],
    bytes: usize,
}

impl Write for Place {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.text[self.bytes..];
        let text = &text[..text.floor_char_boundary(room.len())];
        room[..text.len()].copy_from_slice(text.as_bytes());
        self.bytes += text.len();
        Ok(())
    }
}

thread_local! {
    /// Where this thread's last panic was.
    static PANICKED_AT: Cell<Option<Place>> = const { Cell::new(None) };
}

/// Has panics leave their places.
pub(super) fn note_places() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = take_hook();
        set_hook(Box::new(move |panic| {
            PANICKED_AT.set(panic.location().map(|location| {
                let mut place = Place {
                    text: [0; 256],
                    bytes: 0,
                };
                // What does not fit is cut, which is no error.
                let _ = write!(place, "{location}");
                place
            }));
            if may_print() {
                print(panic);
            }
        }));
    });
}

/// Where this thread has panicked since it was asked last.
pub(super) fn take_place() -> Option<String> {
    let place = PANICKED_AT.take()?;
    Some(String::from_utf8_lossy(&place.text[..place.bytes]).into_owned())
}

fn may_print() -> bool {
    static PRINTED: Mutex<Option<Instant>> = Mutex::new(None);
    // Whoever waited here could wait for a thread that panics in its turn.
    let Ok(mut printed) = PRINTED.try_lock() else {
        return false;
    };
    let now = Instant::now();
    let may = printed.is_none_or(|last| now.duration_since(last) >= BETWEEN_PRINTS);
    if may {
        *printed = Some(now);
    }
    may
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_does_not_fit_is_cut_between_two_letters() {
        let mut place = Place {
            text: [0; 256],
            bytes: 0,
        };
        write!(place, "{}é", "a".repeat(255)).unwrap();
        PANICKED_AT.set(Some(place));
        let text = take_place().unwrap();
        assert_eq!(text, "a".repeat(255));
        assert_eq!(take_place(), None);
    }
}
