/// Tests of one vector vocabulary, BCQ_SIMD (a header of csrc/kernels), word by word.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <initializer_list>

#include BCQ_SIMD

namespace {

int num_failures = 0;
long long num_checks = 0;

void check(bool holds, const char* what, double at, double found, double wanted) {
  num_checks++;
  if (holds) return;
  if (num_failures++ < 20)
    printf("FAILED %s at %.9g: %.9g, wanted %.9g\n", what, at, found, wanted);
}

void check_equal(const char* what, double at, double found, double wanted) {
  check(found == wanted || (isnan(found) && isnan(wanted)), what, at, found, wanted);
}

uint32_t random_bits() {
  static uint32_t state = 1;
  state ^= state << 13;
  state ^= state >> 17;
  return state ^= state << 5;
}

float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

/// Lane `lane` of a register.
int32_t lane_of(vi x, int lane) {
  int32_t all[kLanes];
  memcpy(all, &x, sizeof(all));
  return all[lane];
}
float lane_of_f(vf x, int lane) {
  float all[kLanes];
  vf_store(all, x);
  return all[lane];
}

double value_of_half(int half) {
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const double size = exponent == 31  ? (fraction ? NAN : INFINITY)
                      : exponent == 0 ? ldexp(fraction, -24)
                                      : ldexp(1024 + fraction, exponent - 25);
  return half & 0x8000 ? -size : size;
}

/// Every float16 there is.
void test_load_f16() {
  for (int first = 0; first < 65536; first += kLanes) {
    uint16_t halves[kLanes];
    for (int i = 0; i < kLanes; i++) halves[i] = (uint16_t)(first + i);
    const vf x = vf_load_f16(halves);
    for (int i = 0; i < kLanes; i++) {
      const double wanted = value_of_half(first + i);
      check_equal("load_f16", first + i, lane_of_f(x, i), wanted);
      check(isnan(wanted) || signbit(lane_of_f(x, i)) == signbit(wanted), "sign", first + i, 0, 0);
    }
  }
}

void check_store_f16(float x, int wanted) {
  uint16_t found[kLanes + 1];
  found[kLanes] = 0xabcd;
  vf_store_f16(found, vf_set1(x));
  check(found[kLanes] == 0xabcd, "store_f16 beyond its lanes", x, found[kLanes], 0xabcd);
  for (int i = 0; i < kLanes; i++) check_equal("store_f16", x, found[i], wanted);
}

/// Every float16, the middle to its neighbour (ties go to the even one), and a float beside that.
void test_store_f16() {
  for (int half = 0; half < 0x7c00; half++) {
    const float low = (float)value_of_half(half);
    const float high = half == 0x7bff ? 65536.0f : (float)value_of_half(half + 1);
    const float middle = (low + high) / 2;  // exact: one more bit
    for (int sign = 0; sign < 2; sign++) {
      const float factor = sign ? -1.0f : 1.0f;
      const int bit = sign << 15;
      check_store_f16(low * factor, half | bit);
      check_store_f16(middle * factor, (half + (half & 1)) | bit);
      check_store_f16(nextafterf(middle, 0.0f) * factor, half | bit);
      check_store_f16(nextafterf(middle, INFINITY) * factor, (half + 1) | bit);
    }
  }
  for (float x : {65536.0f, 1e30f, INFINITY}) check_store_f16(x, 0x7c00);
  for (float x : {1e-30f, 1e-45f, 0.0f}) check_store_f16(x, 0), check_store_f16(-x, 0x8000);
  for (uint32_t bits : {0x7fc00000u, 0x7f800001u, 0xffffffffu}) {
    uint16_t found[kLanes];
    vf_store_f16(found, vf_set1(float_of(bits)));
    check(isnan(value_of_half(found[0])), "store_f16 of NaN", bits, found[0], 0x7e00);
  }
}

/// `top`: what the codes stay below; `bias`: what each is lowered by.
void check_dot(vi (*dot)(vi, vi, vi), int top, int bias, int round) {
  uint8_t w[4 * kLanes];
  int8_t a[4 * kLanes];
  int32_t start[kLanes];
  for (int i = 0; i < 4 * kLanes; i++) {
    const uint32_t bits = random_bits();
    // Extremes first, all of one sign, then mixed, then anything.
    w[i] = (uint8_t)(round < 4 ? (round & 1 ? top - 1 : 0) : bits % (uint32_t)top);
    a[i] = (int8_t)(round < 4 ? (round & 2 ? 127 : -127) : (int)(bits >> 8) % 255 - 127);
    if (round >= 4 && round < 200) {
      w[i] = bits & 1 << 20 ? (uint8_t)(top - 1) : 0;
      a[i] = bits & 1 << 21 ? 127 : -127;
    }
  }
  for (int i = 0; i < kLanes; i++) start[i] = (int32_t)random_bits() >> 4;
  const vi sums = dot(vi_load(start), vi_load(w), vi_load(a));
  for (int i = 0; i < kLanes; i++) {
    int32_t wanted = start[i];
    for (int j = 4 * i; j < 4 * i + 4; j++) wanted += (w[j] - bias) * a[j];
    check_equal(top == 128 ? "dot7" : "dot8", round, lane_of(sums, i), wanted);
  }
}

void test_dots() {
  for (int round = 0; round < 20000; round++) {
    check_dot([](vi s, vi w, vi a) { return dot7(s, w, a); }, 128, 0, round);
    check_dot([](vi s, vi w, vi a) { return dot8(s, w, a); }, 256, kBias8, round);
  }
}

void test_integers() {
  const float from[] = {0.5f,  1.5f,   2.5f,    -0.5f,       -1.5f,
                        -2.5f, 126.5f, -126.5f, 0.49999997f, 127.0f};
  const int to[] = {0, 2, 2, 0, -2, -2, 126, -126, 0, 127};
  for (int i = 0; i < 10; i++)
    check_equal("round", from[i], lane_of(vi_round(vf_set1(from[i])), 0), to[i]);
  for (int value = -128; value < 128; value++) {
    int8_t bytes[kLanes + 1], around = 77;
    bytes[kLanes] = around;
    int32_t lanes[kLanes];
    for (int i = 0; i < kLanes; i++) lanes[i] = (int8_t)(value + i);
    vi_store_s8(bytes, vi_load(lanes));
    check_equal("store_s8 beyond its lanes", value, bytes[kLanes], around);
    for (int i = 0; i < kLanes; i++) {
      check_equal("store_s8", value, bytes[i], lanes[i]);
      check_equal("load_s8", value, lane_of(vi_load_s8(bytes), i), bytes[i]);
      check_equal("load_u8", value, lane_of(vi_load_u8((uint8_t*)bytes), i), (uint8_t)bytes[i]);
    }
  }
  const int8_t quad[] = {9, -1, 2, -3, 4};
  int32_t wanted;
  memcpy(&wanted, quad + 1, 4);
  for (int i = 0; i < kLanes; i++) check_equal("quad", i, lane_of(vi_quad(quad + 1), i), wanted);
  const int32_t bits = (int32_t)0x9abcdef1;
  const vi all = vi_set1(bits);
  check_equal("srl 0", 0, lane_of(vi_srl<0>(all), 0), bits);
  check_equal("srl 4", 4, lane_of(vi_srl<4>(all), 0), 0x09abcdef);
  check_equal("srl 24", 24, lane_of(vi_srl<24>(all), 0), 0x9a);
  check_equal("sll 0", 0, lane_of(vi_sll<0>(all), 0), bits);
  check_equal("sll 8", 8, lane_of(vi_sll<8>(all), 0), (int32_t)0xbcdef100);
}

/// `a > b ? a : b` and `a < b ? a : b`, in each lane.
void test_order() {
  const float values[] = {0.0f, -0.0f, 1.0f, -1.0f, INFINITY, -INFINITY, NAN, 3e-45f};
  for (float a : values)
    for (float b : values) {
      const vf most = vf_max(vf_set1(a), vf_set1(b)), least = vf_min(vf_set1(a), vf_set1(b));
      const float max = a > b ? a : b, min = a < b ? a : b;
      check_equal("max", a, lane_of_f(most, 0), max);
      check_equal("min", a, lane_of_f(least, 0), min);
      check(isnan(max) || !signbit(max) == !signbit(lane_of_f(most, 0)), "max's sign", a, b, max);
      check(isnan(min) || !signbit(min) == !signbit(lane_of_f(least, 0)), "min's sign", a, b, min);
    }
}

void test_reductions() {
  for (int spot = 0; spot < kLanes; spot++) {
    int32_t lanes[kLanes];
    float floats[kLanes];
    int32_t sum = 0;
    for (int i = 0; i < kLanes; i++) {
      lanes[i] = i == spot ? 1 << 20 : -(1 << i);
      floats[i] = (float)lanes[i];
      sum += lanes[i];
    }
    check_equal("largest", spot, vi_largest(vi_load(lanes)), 1 << 20);
    check_equal("sum", spot, vi_sum(vi_load(lanes)), sum);
    check_equal("float largest", spot, vf_largest(vf_load(floats)), 1 << 20);
    check_equal("float sum", spot, vf_sum(vf_load(floats)), sum);
  }
}

}  // namespace

int main() {
  test_load_f16();
  test_store_f16();
  test_dots();
  test_integers();
  test_order();
  test_reductions();
  printf("ran " BCQ_SIMD ", %lld checks, %d failures\n", num_checks, num_failures);
  return num_failures == 0 ? 0 : 1;
}
