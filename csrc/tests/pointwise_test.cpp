/// Tests of the elementwise operations and of embeddings on one tier: `pointwise_test <tier>`.
#include "bcq/kernels.h"
#include "kernel_check.h"

namespace {

const bcq_kernels* kernels;
constexpr int64_t kSizes[] = {1, 3, 4, 15, 16, 17, 63, 64, 65, 100, 1023, 4096};

/// |got - wanted| <= bound x |wanted|
bool is_near(float got, double wanted, double bound) {
  return fabs(got - wanted) <= bound * fabs(wanted);
}

void test_rmsnorm() {
  for (int64_t n : kSizes) {
    Buffer<float> x(n), weight(n), y(n);
    fill(x.get(), n, 3.0f), fill(weight.get(), n, 2.0f);
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    const double factor = 1 / sqrt(sum / (double)n + (double)1e-5f);
    kernels->rmsnorm(x.get(), weight.get(), 1e-5f, n, y.get());
    for (int64_t i = 0; i < n; i++)  // a sum of 4096 squares in 16 or more parts, 3 roundings
      CHECK(is_near(y[i], x[i] * factor * weight[i], 4e-6));
    kernels->rmsnorm(x.get(), weight.get(), 1e-5f, n, x.get());
    CHECK(memcmp(x.get(), y.get(), (size_t)n * sizeof(float)) == 0);
  }
}

void test_rope() {
  for (int64_t dim : {2, 6, 16, 32, 64, 80, 128}) {
    const int64_t heads = 3, half = dim / 2;
    Buffer<float> x(heads * dim), wanted(heads * dim), cosines(half), sines(half);
    fill(x.get(), heads * dim, 1.0f);
    for (int64_t i = 0; i < half; i++) {
      cosines[i] = cosf((float)i + 0.3f), sines[i] = sinf((float)i + 0.3f);
      for (int64_t h = 0; h < heads; h++) {
        const double a = x[h * dim + i], b = x[h * dim + half + i];
        wanted[h * dim + i] = (float)(a * cosines[i] - b * sines[i]);
        wanted[h * dim + half + i] = (float)(b * cosines[i] + a * sines[i]);
      }
    }
    kernels->rope(x.get(), heads, dim, cosines.get(), sines.get());
    for (int64_t i = 0; i < heads * dim; i++) CHECK(fabsf(x[i] - wanted[i]) < 3e-7f);
  }
}

void test_silu_mul_and_add() {
  for (int64_t n : kSizes) {
    Buffer<float> gate(n), up(n), out(n), sum(n);
    fill(gate.get(), n, 30.0f), fill(up.get(), n, 2.0f);
    kernels->silu_mul(gate.get(), up.get(), n, out.get());
    for (int64_t i = 0; i < n; i++)  // exp within 1.1 ulp, three more roundings
      CHECK(is_near(out[i], gate[i] / (1 + exp(-(double)gate[i])) * up[i], 4e-7));
    memcpy(sum.get(), up.get(), (size_t)n * sizeof(float));
    kernels->add(gate.get(), n, sum.get());
    for (int64_t i = 0; i < n; i++) CHECK(sum[i] == gate[i] + up[i]);
    kernels->silu_mul(gate.get(), up.get(), n, gate.get());
    CHECK(memcmp(gate.get(), out.get(), (size_t)n * sizeof(float)) == 0);
  }
  float gate[6] = {-200.0f, 200.0f, -88.5f, 0.0f, INFINITY, NAN}, out[6];
  const float up[6] = {1, 1, 1, 1, 1, 1};
  kernels->silu_mul(gate, up, 6, out);
  CHECK(fabsf(out[0]) < 1e-30f && out[1] == 200.0f && fabsf(out[2]) < 1e-30f && out[3] == 0.0f);
  CHECK(out[4] == INFINITY && isnan(out[5]));
}

void test_softmax() {
  for (int64_t n : kSizes) {
    Buffer<float> x(n), y(n);
    fill(x.get(), n, 20.0f);
    if (n > 2) x[1] = -INFINITY;
    memcpy(y.get(), x.get(), (size_t)n * sizeof(float));
    kernels->softmax(y.get(), n, 0.7f);
    double top = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++) top = fmax(top, x[i]);
    for (int64_t i = 0; i < n; i++) sum += exp((x[i] - top) / (double)0.7f);
    for (int64_t i = 0; i < n; i++)  // the argument, down to -57, has an error of 2^-24 of itself
      CHECK(is_near(y[i], exp((x[i] - top) / (double)0.7f) / sum, 1e-5));
    for (int64_t i = 0; i < n; i++) y[i] = -INFINITY;
    kernels->softmax(y.get(), n, 1.0f);
    for (int64_t i = 0; i < n; i++) CHECK(y[i] == 0.0f);
  }
}

void test_argmax() {
  for (int64_t n : kSizes) {
    Buffer<float> x(n);
    for (int64_t at : {n / 2, n - 1, (int64_t)0}) {
      fill(x.get(), n, 1.0f);
      x[at] = 2.0f, x[n - 1] = 2.0f;
      if (at > 0) x[0] = NAN;
      CHECK(kernels->argmax(x.get(), n) == at);
    }
    for (int64_t i = 0; i < n; i++) x[i] = i < n / 2 ? NAN : -INFINITY;
    CHECK(kernels->argmax(x.get(), n) == n / 2);
    x[n / 2] = NAN;
    CHECK(kernels->argmax(x.get(), n) == (n / 2 + 1 < n ? n / 2 + 1 : 0));
  }
  float zeros[2] = {-0.0f, 0.0f};
  CHECK(kernels->argmax(zeros, 2) == 0);
}

/// Rows of a packed table: exactly float32(scale) x (code - zero).
void check_embedding(int32_t bits, int64_t columns, int64_t group, bool has_zeros) {
  const int64_t rows = 35, groups = (columns + group - 1) / group;
  Buffer<uint8_t> codes(rows * columns), zeros(rows * groups);
  Buffer<uint16_t> scales(rows * groups);
  for (int64_t i = 0; i < rows * columns; i++)
    codes[i] = (uint8_t)((int32_t)(random_float() * 1000 + 1000) % (1 << bits));
  for (int64_t i = 0; i < rows * groups; i++) {
    zeros[i] = (uint8_t)((int32_t)(random_float() * 1000 + 1000) % (1 << bits));
    scales[i] = (uint16_t)(random_float() * 0x3000 + 0x3000);
  }
  size_t bytes;
  CHECK(bcq_weight_bytes(rows, columns, bits, group, has_zeros, &bytes) == BCQ_OK);
  Buffer<uint8_t> blob((int64_t)bytes);
  CHECK(bcq_weight_pack(codes.get(), scales.get(), has_zeros ? zeros.get() : nullptr, rows, columns,
                        bits, group, blob.get(), bytes) == BCQ_OK);
  bcq_weight w;
  CHECK(bcq_weight_open(blob.get(), bytes, &w) == BCQ_OK);
  const int32_t ids[6] = {34, 0, 17, 16, 15, 0};
  Buffer<float> out(5 * (columns + 1) + columns);
  const bcq_context context = {kernels, nullptr};
  CHECK(bcq_embed(&context, &w, ids, 6, out.get(), columns + 1) == BCQ_OK);
  for (int64_t i = 0; i < 6; i++)
    for (int64_t k = 0; k < columns; k++) {
      const int64_t at = ids[i] * groups + k / group;
      const int32_t zero = has_zeros ? zeros[at] : 1 << (bits - 1);
      const float wanted =
          (float)from_f16(scales[at]) * (float)(codes[ids[i] * columns + k] - zero);
      CHECK(out[i * (columns + 1) + k] == wanted);
    }
}

void check_embedding_f16(int64_t columns) {
  const int64_t rows = 20;
  Buffer<uint16_t> values(rows * columns);
  for (int64_t i = 0; i < rows * columns; i++) values[i] = (uint16_t)(i * 37 % 0x7c00);
  size_t bytes;
  CHECK(bcq_weight_bytes(rows, columns, 16, columns, 0, &bytes) == BCQ_OK);
  Buffer<uint8_t> blob((int64_t)bytes);
  CHECK(bcq_weight_pack_f16(values.get(), rows, columns, blob.get(), bytes) == BCQ_OK);
  bcq_weight w;
  CHECK(bcq_weight_open(blob.get(), bytes, &w) == BCQ_OK);
  Buffer<float> out(columns);
  for (int64_t n = 0; n < rows; n++) {
    kernels->embed_row(&w, n, out.get());
    for (int64_t k = 0; k < columns; k++) CHECK(out[k] == (float)from_f16(values[n * columns + k]));
  }
}

void test_embeddings() {
  for (int32_t bits : {2, 3, 4, 8})
    for (bool has_zeros : {false, true}) {
      check_embedding(bits, 128, 32, has_zeros);
      check_embedding(bits, 71, 71, has_zeros);
      check_embedding(bits, 200, 64, has_zeros);
    }
  check_embedding_f16(64), check_embedding_f16(45);
  uint8_t code = 0;
  bcq_weight w = {};
  w.out_features = 5, w.in_features = 4, w.codes = &code;
  const bcq_context context = {kernels, nullptr};
  const int32_t ids[2] = {0, 5}, negative = -1;
  float out[8];
  CHECK(bcq_embed(&context, &w, ids, 2, out, 4) == BCQ_BAD_ARGUMENT);
  CHECK(bcq_embed(&context, &w, &negative, 1, out, 4) == BCQ_BAD_ARGUMENT);
  CHECK(bcq_embed(&context, &w, ids, 1, out, 3) == BCQ_BAD_SHAPE);
  CHECK(bcq_embed(&context, &w, ids, 0, out, 4) == BCQ_OK);
}

}  // namespace

int main(int argc, char** argv) {
  const bcq_status status = bcq_kernels_get(argc > 1 ? argv[1] : nullptr, &kernels);
  if (status == BCQ_TIER_NOT_HERE) return printf("pointwise_test: tier not here\n"), 0;
  CHECK(status == BCQ_OK);
  CHECK(argc < 2 || strcmp(kernels->tier, argv[1]) == 0);
  test_rmsnorm();
  test_rope();
  test_silu_mul_and_add();
  test_softmax();
  test_argmax();
  test_embeddings();
  printf("pointwise_test: all passed on %s\n", kernels->tier);
  return 0;
}
