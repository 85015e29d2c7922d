//! CartPole-v1 and Pendulum-v1 of Gymnasium, with the interface that candle's reinforcement-learning example gives to its
//! Python environments. `benches/drop_in.py` builds the example with this file in place of its own.

use candle::{Device, Result, Tensor};
use rand::{rngs::StdRng, Rng, SeedableRng};
use std::cell::Cell;
use std::f64::consts::PI;

/// Result of a step.
pub struct Step<A> {
    pub state: Tensor,
    pub action: A,
    pub reward: f64,
    pub terminated: bool,
    pub truncated: bool,
}

impl<A: Copy> Step<A> {
    pub fn copy_with_obs(&self, state: &Tensor) -> Self {
        Self { state: state.clone(), ..*self }
    }
}

/// The forms in which the programs give their actions.
pub trait Action {
    fn value(&self) -> f64;
}

impl Action for i64 {
    fn value(&self) -> f64 {
        *self as f64
    }
}

impl Action for u32 {
    fn value(&self) -> f64 {
        f64::from(*self)
    }
}

impl Action for Vec<f32> {
    fn value(&self) -> f64 {
        f64::from(self[0])
    }
}

#[derive(Clone, Copy)]
enum State {
    CartPole { x: f64, velocity: f64, angle: f64, rotation: f64 },
    Pendulum { angle: f64, rotation: f64 },
}
use State::{CartPole, Pendulum};

impl State {
    fn random(is_pendulum: bool, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut draw = |limit: f64| rng.random_range(-limit..limit);
        if is_pendulum {
            Pendulum { angle: draw(PI), rotation: draw(1.0) }
        } else {
            CartPole { x: draw(0.05), velocity: draw(0.05), angle: draw(0.05), rotation: draw(0.05) }
        }
    }

    fn observation(self) -> Result<Tensor> {
        let values = match self {
            CartPole { x, velocity, angle, rotation } => vec![x, velocity, angle, rotation],
            Pendulum { angle, rotation } => vec![angle.cos(), angle.sin(), rotation],
        };
        Tensor::new(values.into_iter().map(|value| value as f32).collect::<Vec<_>>(), &Device::Cpu)
    }

    /// The next state, the reward, and whether the episode has ended.
    fn next(self, action: f64) -> (Self, f64, bool) {
        match self {
            CartPole { x, velocity, angle, rotation } => {
                let force = if action == 1.0 { 10.0 } else { -10.0 };
                let push = (force + 0.05 * rotation.powi(2) * angle.sin()) / 1.1;
                let turn = (9.8 * angle.sin() - angle.cos() * push)
                    / (0.5 * (4.0 / 3.0 - 0.1 * angle.cos().powi(2) / 1.1));
                let acceleration = push - 0.05 * turn * angle.cos() / 1.1;
                let (x, angle) = (x + 0.02 * velocity, angle + 0.02 * rotation);
                let (velocity, rotation) = (velocity + 0.02 * acceleration, rotation + 0.02 * turn);
                let has_fallen = x.abs() > 2.4 || angle.abs() > 12.0 * PI / 180.0;
                (CartPole { x, velocity, angle, rotation }, 1.0, has_fallen)
            }
            Pendulum { angle, rotation } => {
                let torque = action.clamp(-2.0, 2.0);
                let from_top = (angle + PI).rem_euclid(2.0 * PI) - PI;
                let cost = from_top.powi(2) + 0.1 * rotation.powi(2) + 0.001 * torque.powi(2);
                let rotation = (rotation + 0.05 * (15.0 * angle.sin() + 3.0 * torque)).clamp(-8.0, 8.0);
                (Pendulum { angle: angle + 0.05 * rotation, rotation }, -cost, false)
            }
        }
    }
}

pub struct GymEnv {
    is_pendulum: bool,
    state: Cell<State>,
    steps: Cell<usize>,
}

impl GymEnv {
    pub fn new(name: &str) -> Result<Self> {
        let is_pendulum = name == "Pendulum-v1";
        Ok(Self { is_pendulum, state: State::random(is_pendulum, 0).into(), steps: 0.into() })
    }

    pub fn reset(&self, seed: u64) -> Result<Tensor> {
        self.state.set(State::random(self.is_pendulum, seed));
        self.steps.set(0);
        self.state.get().observation()
    }

    pub fn step<A: Action>(&self, action: A) -> Result<Step<A>> {
        let (state, reward, terminated) = self.state.get().next(action.value());
        self.state.set(state);
        self.steps.set(self.steps.get() + 1);
        let truncated = self.steps.get() >= if self.is_pendulum { 200 } else { 500 };
        Ok(Step { state: state.observation()?, action, reward, terminated, truncated })
    }

    pub fn action_space(&self) -> usize {
        if self.is_pendulum { 1 } else { 2 }
    }

    pub fn observation_space(&self) -> &[usize] {
        if self.is_pendulum { &[3] } else { &[4] }
    }
}
