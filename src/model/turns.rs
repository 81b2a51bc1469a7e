//! A queue of jobs in which clients take turns: a client with thousands of jobs delays another's first by one job.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Clients in order that may have nothing left, before they are looked for.
const MIN_SWEEP: usize = 64;

/// Each client's jobs in the order in which they came; the clients one after the other. `C` tells clients apart.
#[derive(Debug)]
pub(crate) struct JobTurns<C, J> {
    /// Of everyone in `order`, and of `last`. A queue is empty if all in it was withdrawn.
    queues: HashMap<C, VecDeque<J>>,
    order: VecDeque<C>,
    /// Whose turn it is. It goes behind those who come while its job runs.
    last: Option<C>,
    sweep_at: usize,
}

impl<C, J> Default for JobTurns<C, J> {
    fn default() -> JobTurns<C, J> {
        JobTurns {
            queues: HashMap::new(),
            order: VecDeque::new(),
            last: None,
            sweep_at: MIN_SWEEP,
        }
    }
}

impl<C: Clone + Eq + Hash, J> JobTurns<C, J> {
    pub(crate) fn push(&mut self, client: C, job: J) {
        if let Some(queue) = self.queues.get_mut(&client) {
            queue.push_back(job);
            return;
        }
        self.sweep();
        self.queues.insert(client.clone(), VecDeque::from([job]));
        self.order.push_back(client);
    }

    /// The next job. The last one is done, so its client goes to the back.
    pub(crate) fn next(&mut self) -> Option<J> {
        if let Some(last) = self.last.take() {
            self.order.push_back(last);
        }
        while let Some(client) = self.order.pop_front() {
            match self.queues.get_mut(&client).and_then(VecDeque::pop_front) {
                Some(job) => {
                    self.last = Some(client);
                    return Some(job);
                }
                None => {
                    self.queues.remove(&client);
                }
            }
        }
        None
    }

    /// Takes out those jobs of a client, as far as they have not begun.
    pub(crate) fn withdraw(&mut self, client: &C, which: impl Fn(&J) -> bool) -> Vec<J> {
        let Some(queue) = self.queues.get_mut(client) else {
            return Vec::new();
        };
        if !queue.iter().any(&which) {
            return Vec::new();
        }
        let (gone, stay) = queue.drain(..).partition::<VecDeque<J>, _>(which);
        *queue = stay;
        gone.into()
    }

    /// Removes clients without jobs: many may come and go while one job runs.
    fn sweep(&mut self) {
        if self.order.len() < self.sweep_at {
            return;
        }
        let queues = &mut self.queues;
        self.order.retain(|client| {
            let stays = queues.get(client).is_some_and(|queue| !queue.is_empty());
            if !stays {
                queues.remove(client);
            }
            stays
        });
        self.sweep_at = MIN_SWEEP.max(2 * self.order.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(turns: &mut JobTurns<char, usize>) -> Vec<usize> {
        std::iter::from_fn(|| turns.next()).collect()
    }

    #[test]
    fn a_client_that_asks_4000_things_delays_another_by_one_job_at_most() {
        let mut turns = JobTurns::default();
        for job in 0..4_000 {
            turns.push('a', job);
        }
        assert_eq!(turns.next(), Some(0));
        // While that one runs, another comes, and then a third.
        turns.push('b', 5_000);
        turns.push('b', 5_001);
        turns.push('c', 6_000);
        let next: Vec<_> = (0..6).filter_map(|_| turns.next()).collect();
        assert_eq!(next, [5_000, 6_000, 1, 5_001, 2, 3]);
        // Who comes in between asks the first again only after the one that runs.
        turns.push('c', 6_001);
        assert_eq!(turns.next(), Some(6_001));
        assert_eq!(all(&mut turns), (4..4_000).collect::<Vec<_>>());
        assert!(turns.queues.is_empty() && turns.order.is_empty());
    }

    #[test]
    fn a_client_that_asks_while_its_own_job_runs_is_neither_lost_nor_twice_in_turn() {
        let mut turns = JobTurns::default();
        turns.push('a', 1);
        assert_eq!(turns.next(), Some(1));
        turns.push('a', 2);
        turns.push('b', 3);
        turns.push('a', 4);
        assert_eq!(all(&mut turns), [3, 2, 4]);
        turns.push('a', 5);
        assert_eq!(all(&mut turns), [5]);
    }

    #[test]
    fn clients_that_come_and_go_behind_a_long_job_leave_nothing_behind() {
        let mut turns = JobTurns::default();
        turns.push(0, 0);
        assert_eq!(turns.next(), Some(0));
        turns.push(1, 1);
        for client in 2..100_000 {
            turns.push(client, client);
            assert_eq!(turns.withdraw(&client, |_| true), [client]);
            assert!(turns.withdraw(&client, |_| true).is_empty());
        }
        assert!(turns.order.len() <= 2 * MIN_SWEEP && turns.queues.len() <= 2 * MIN_SWEEP);
        let left: Vec<_> = std::iter::from_fn(|| turns.next()).collect();
        assert_eq!(left, [1]);
    }

    #[test]
    fn what_is_withdrawn_does_not_change_the_order_of_the_rest() {
        let mut turns = JobTurns::default();
        for job in 0..6 {
            turns.push('a', job);
        }
        turns.push('b', 10);
        assert_eq!(turns.withdraw(&'a', |job| job % 2 == 0), [0, 2, 4]);
        assert_eq!(turns.withdraw(&'b', |_| true), [10]);
        turns.push('b', 11);
        assert_eq!(all(&mut turns), [1, 11, 3, 5]);
    }
}
