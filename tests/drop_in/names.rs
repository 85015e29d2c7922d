// The public names of candle_nn 0.11.1.

#[allow(unused_imports, dead_code, deprecated)]
mod names {
    use super::candle_nn::{
        Activation, AdamW, BatchNorm, BatchNormConfig, Conv1d, Conv1dConfig, Conv2d, Conv2dConfig,
        ConvTranspose1d, ConvTranspose1dConfig, ConvTranspose2d, ConvTranspose2dConfig, Dropout, Embedding,
        Func, FuncT, GRU, GRUConfig, GroupNorm, Init, LSTM, LSTMConfig, LayerNorm, LayerNormConfig, Linear,
        Module, ModuleT, Optimizer, PReLU, ParamsAdamW, RNN, RmsNorm, SGD, Sequential, VarBuilder, VarMap,
        batch_norm, conv_transpose1d, conv_transpose1d_no_bias, conv_transpose2d, conv_transpose2d_no_bias,
        conv1d, conv1d_no_bias, conv2d, conv2d_no_bias, embedding, func, func_t, group_norm, gru, layer_norm,
        layer_norm_no_bias, linear, linear_b, linear_no_bias, lstm, moe, prelu, rms_norm, seq,
        varlen_attention,
    };
    /// Names of both globs, which must not be ambiguous.
    mod globs {
        use super::super::candle_nn::{ops::*, *};
        use candle_core::{Result, Tensor};

        pub fn layer(xs: &Tensor) -> Result<Tensor> {
            let seq = seq().add(Activation::Relu).add_fn(|xs| softmax(&dropout(xs, 0.5)?, 1));
            selu(&seq.forward(xs)?, 1.0, 1.0)?.apply_t(&Dropout::new(0.5), false)
        }
    }
    mod activation_names {
        use super::super::candle_nn::activation::{Activation, PReLU, prelu};
    }
    mod attention_names {
        use super::super::candle_nn::attention::{
            AttnMask, cpu_flash, flash_attn, flash_attn_varlen_cpu, flash_attn_varlen_unfused, varlen,
        };
    }
    mod batch_norm_names {
        use super::super::candle_nn::batch_norm::{BatchNorm, BatchNormConfig, batch_norm};
    }
    mod conv_names {
        use super::super::candle_nn::conv::{
            Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, ConvTranspose1d, ConvTranspose1dConfig,
            ConvTranspose2d, ConvTranspose2dConfig, conv_transpose1d, conv_transpose1d_no_bias,
            conv_transpose2d, conv_transpose2d_no_bias, conv1d, conv1d_no_bias, conv2d, conv2d_no_bias,
        };
    }
    mod cpu_flash_attention_names {
        use super::super::candle_nn::cpu_flash_attention::run_flash_attn_cpu;
    }
    mod embedding_names {
        use super::super::candle_nn::embedding::{Embedding, embedding};
    }
    mod encoding_names {
        use super::super::candle_nn::encoding::one_hot;
    }
    mod func_names {
        use super::super::candle_nn::func::{Func, FuncT, func, func_t};
    }
    mod group_norm_names {
        use super::super::candle_nn::group_norm::{GroupNorm, group_norm};
    }
    mod init_names {
        use super::super::candle_nn::init::{
            DEFAULT_KAIMING_NORMAL, DEFAULT_KAIMING_UNIFORM, FanInOut, Init, NonLinearity, NormalOrUniform,
            ONE, ZERO,
        };
    }
    mod kv_cache_names {
        use super::super::candle_nn::kv_cache::{
            Cache, ConcatKvCache, IndicesAndMask, InterleavedKvCache, KvCache, RawInterleavedKvCache,
            RotatingCache, RotatingKvCache, ScatteredCacheBuilder, ScatteredKvCache, rope_i_inplace,
        };
    }
    mod layer_norm_names {
        use super::super::candle_nn::layer_norm::{
            LayerNorm, LayerNormConfig, RmsNorm, layer_norm, layer_norm_no_bias, rms_norm,
        };
    }
    mod linear_names {
        use super::super::candle_nn::linear::{Linear, linear, linear_b, linear_no_bias};
    }
    mod loss_names {
        use super::super::candle_nn::loss::{
            binary_cross_entropy_with_logit, cross_entropy, huber, mse, nll,
        };
    }
    mod ops_names {
        use super::super::candle_nn::ops::{
            Dropout, Identity, dropout, hard_sigmoid, layer_norm, layer_norm_slow, leaky_relu, log_softmax,
            mish, pixel_shuffle, pixel_unshuffle, replication_pad2d, rms_norm, rms_norm_slow, sdpa, selu,
            sigmoid, silu, softmax, softmax_last_dim, swiglu,
        };
    }
    mod optim_names {
        use super::super::candle_nn::optim::{AdamW, Optimizer, ParamsAdamW, SGD};
    }
    mod rnn_names {
        use super::super::candle_nn::rnn::{
            Direction, GRU, GRUConfig, GRUState, LSTM, LSTMConfig, LSTMState, RNN, gru, lstm,
        };
    }
    mod rotary_emb_names {
        use super::super::candle_nn::rotary_emb::{rope, rope_i, rope_i_slow, rope_slow, rope_thd};
    }
    mod sampling_names {
        use super::super::candle_nn::sampling::gumbel_softmax;
    }
    mod sequential_names {
        use super::super::candle_nn::sequential::{Sequential, seq};
    }
    mod var_builder_names {
        use super::super::candle_nn::var_builder::{
            Backend, Rename, Renamer, SafeTensorWithRouting, Shard, ShardedSafeTensors, ShardedVarBuilder,
            SimpleBackend, VarBuilder, VarBuilderArgs,
        };
    }
    mod var_map_names {
        use super::super::candle_nn::var_map::VarMap;
    }
}
