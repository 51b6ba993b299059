/* CartPole-v1 as one would write it in C: the yardstick of env_step_throughput.py.
 *
 * The same arithmetic, records and random numbers as envs/classic/cartpole.py and envs/philox.py, so that both can be
 * compared bit for bit (when compiled with -ffp-contract=off: Numba rounds each product, too).
 */

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

#define MAX_EPISODE_STEPS 500
#define RESET_STREAM 0

static const double PI = 3.141592653589793;
static const double GRAVITY = 9.8, POLE_MASS = 0.1, TOTAL_MASS = 1.0 + 0.1;
static const double HALF_LENGTH = 0.5, POLE_MASS_LENGTH = 0.1 * 0.5, TAU = 0.02;
static const double X_LIMIT = 2.4, FORCE = 10.0;

#pragma pack(push, 1)
struct env {
    uint32_t seed, stream, number, episode, t, k;
    double episode_return;
    double x, x_dot, theta, theta_dot;
};
#pragma pack(pop)

static double next_uniform(struct env *env, double low, double high) {
    uint32_t key_0 = env->seed, key_1 = env->stream;
    uint32_t w0 = env->number, w1 = env->episode, w2 = env->t, w3 = env->k++;
    for (int round = 0; round < 10; round++) {
        uint64_t product_0 = (uint64_t)0xD2511F53u * w0, product_1 = (uint64_t)0xCD9E8D57u * w2;
        w0 = (uint32_t)(product_1 >> 32) ^ w1 ^ key_0;
        w1 = (uint32_t)product_1;
        w2 = (uint32_t)(product_0 >> 32) ^ w3 ^ key_1;
        w3 = (uint32_t)product_0;
        key_0 += 0x9E3779B9u;
        key_1 += 0xBB67AE85u;
    }
    return low + (high - low) * ((w0 >> 5) * 0x1p-27 + (w1 >> 6) * 0x1p-53);
}

static void begin_episode(struct env *env) {
    env->stream = RESET_STREAM;
    env->t = 0;
    env->k = 0;
    env->episode_return = 0.0;
    env->x = next_uniform(env, -0.05, 0.05);
    env->x_dot = next_uniform(env, -0.05, 0.05);
    env->theta = next_uniform(env, -0.05, 0.05);
    env->theta_dot = next_uniform(env, -0.05, 0.05);
}

static void observe(const struct env *env, float *observation) {
    observation[0] = (float)env->x;
    observation[1] = (float)env->x_dot;
    observation[2] = (float)env->theta;
    observation[3] = (float)env->theta_dot;
}

static bool step(struct env *env, int32_t action) {
    double force = action == 1 ? FORCE : -FORCE;
    double cos_theta = cos(env->theta), sin_theta = sin(env->theta);
    double pull = (force + POLE_MASS_LENGTH * (env->theta_dot * env->theta_dot) * sin_theta) / TOTAL_MASS;
    double theta_acc = (GRAVITY * sin_theta - cos_theta * pull) /
                       (HALF_LENGTH * (4.0 / 3.0 - POLE_MASS * (cos_theta * cos_theta) / TOTAL_MASS));
    double x_acc = pull - POLE_MASS_LENGTH * theta_acc * cos_theta / TOTAL_MASS;
    env->x += TAU * env->x_dot;
    env->x_dot += TAU * x_acc;
    env->theta += TAU * env->theta_dot;
    env->theta_dot += TAU * theta_acc;
    return fabs(env->x) > X_LIMIT || fabs(env->theta) > 12 * 2 * PI / 360;
}

void begin_all(struct env *envs, int64_t num_envs, uint32_t seed) {
    for (int64_t i = 0; i < num_envs; i++) {
        envs[i].seed = seed;
        envs[i].number = (uint32_t)i;
        envs[i].episode = 0;
        begin_episode(&envs[i]);
    }
}

/* One step of all environments with SAME_STEP autoreset, as envs/batch_kernel.py's step_all; counts: [finals, episodes]. */
void step_all(struct env *restrict envs, int64_t num_envs, const int32_t *restrict action,
              float *restrict observation, float *restrict reward, bool *restrict terminated,
              bool *restrict truncated, int32_t *restrict final_env, float *restrict final_observation,
              int32_t *restrict episode_env, double *restrict episode_return,
              int32_t *restrict episode_length, int64_t *restrict counts) {
    int64_t finals = 0, episodes = 0;
    for (int64_t i = 0; i < num_envs; i++) {
        struct env *env = &envs[i];
        terminated[i] = step(env, action[i]);
        reward[i] = 1.0f;
        env->t += 1;
        env->episode_return += 1.0;
        truncated[i] = env->t >= MAX_EPISODE_STEPS;
        if (terminated[i] || truncated[i]) {
            if (truncated[i]) {
                observe(env, final_observation + 4 * finals);
                final_env[finals++] = (int32_t)i;
            }
            episode_env[episodes] = (int32_t)i;
            episode_return[episodes] = env->episode_return;
            episode_length[episodes++] = (int32_t)env->t;
            env->episode += 1;
            begin_episode(env);
        }
        observe(env, observation + 4 * i);
    }
    counts[0] = finals;
    counts[1] = episodes;
}
