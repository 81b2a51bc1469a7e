#!/usr/bin/env python3
"""Makes synthetic Chinese legal sentences in which the birth dates are marked.

    python examples/ner/generate.py --split heldout --count 1000 --seed 2 > examples/ner/heldout.jsonl

One line a sentence: {"text": "...", "entities": [[start, end, "BD"], ...]}, start and end in characters (Unicode scalar
values), end exclusive. The same split, count and seed give the same bytes. Needs Python 3.8 or later and nothing else.

The splits (train, dev, heldout) share no template, see templates.py. Of surnames, given names, places and firms one in five is
kept from train, so that the other two hold characters which training never saw. All people and numbers are made up.
"""

import argparse
import json
import random
import re
import sys

import templates

SHORTEST, LONGEST = 8, 200
SPLITS = {"train": templates.TRAIN, "dev": templates.DEV, "heldout": templates.HELD_OUT}


def unique(characters):
    return list(dict.fromkeys(characters))


SURNAMES = unique(
    "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗梁宋郑谢韩唐冯于董萧程曹袁邓许傅沈曾彭吕苏卢蒋蔡贾丁魏薛叶阎余潘杜戴夏钟汪田任姜范方石姚谭廖邹熊金"
    "陆郝孔白崔康毛邱秦江史顾侯邵孟龙万段雷钱汤尹黎易常武乔贺赖龚文庞樊兰殷施陶洪翟安颜倪严牛温芦季俞章鲁葛伍韦申尤毕聂丛焦向柳邢路岳齐梅莫庄辛管祝左涂谷时舒耿牟卜詹关苗凌费纪靳盛童欧甄项曲成游阳裴席卫查屈"
    "鲍位覃霍翁隋植甘景薄单包司柏宁柯阮桂闵解强柴华车冉房边"
    "辜吉饶刁瞿戚丘古米池滕晋苑邬臧畅宫来嵺苟全褚廉简娄盖符奚木穆党燕郎邸冀谈姬屠连郜晏栾郁商蒙计喻揭窦迟宇敖糜鄢冷卓花仇艾蓝都巩稽井练仲乐虞卞封竺冼原官衣楚佟栗匡宗应台巫鞠僧桑荆谌银扬明沙薄伏岑胥保和蔺水云昌凤酆常皮康伍余元平顿")
COMPOUND_SURNAMES = ["欧阳", "上官", "司马", "诸葛", "东方", "皇甫", "尉迟", "公孙", "慕容", "令狐", "司徒", "夏侯", "轩辕", "端木", "独孤"]
GIVEN = unique(
    "伟芳娜秀英敏静丽强磊军洋勇艳杰娟涛明超兰霞平刚桂文辉建国华玲红梅志玉春海波宁鹏飞宇浩然子涵梓萱雨欣怡博佳琪嘉俊思远晓燕雪琴云莲荣爱香月莺媛瑞凡宏顺信友健康松柏凤洁琳素真环翠珠莉桃青山福生龙元全胜学祥才发武新利清彬富梁维启克伦翔旭"
    "泽晨辰士以家致树炎德行时泰雄琛钧冠策腾楠榕航弘义兴良广仁忠诚永庆江成贵正立中茂进林有坚和彪哲振壮会思群豪心邦承绍功善厚庭川毅政谦亨达朋斌天星光辛乐言若鸣民裕河岩薇岚苑筠柔竹霭凝晖蓉眉君筱珍莎锦黛倩婷姣婉娴瑾颖露瑶怡婵雁蓓纨仪荷丹妹璐璟曦妍"
    "枫芸菲寒伊亚宜可姬舒影荔枝丽阳妮宝贝鑫淼垚森焱炜烨煜琦珂珏珺琨瑜瑛璇璋瓒骏骥骁驰骞麒麟鹤鸿鹰雕蛟豹虎彦彤彩奕奎奇妤姝娅娇娥嫣嬿孜宸宽容尧岱峥峰嵘嵩巍常庚廷弦徽恒恩悦惠慧懿成戈扬才拓挺捷放敬斐昂昆昊昌昭"
    "晔晟晶景晴智朔朗本权杏材来枢柳栋校根格桐桓梦棠植楚楷榆槐樱欢歆殿毓沁沛沐沫泉泓泊洲流济浦淑淞淳渊渝温湘源溪滢漫潇澄澜濡灵灿炳烁焕煊熙照燊爽牧玄玫理琰璞甜画畅盈相睿瞳碧祎祖祺禄禾秋程稷穆笑笛简策籽粒素紫"
    "红纯纲绪绮维缘罡羽翎翰耀聪肃育胤腊自舟艺艾节芊芝芬芮花苇苒苗英茉茗茜茵草荃荆荟莘菁菊萌落葳蒙蓝蔓蔚蕊蕙蕴薛藻虹蝶衍衡裴西观解言许诗诺谊谧谷豫贝贤赋超越路轩辽迎迪适逊逸道邈郁采野金钊钢钰铁铃铎铭银锋锐镇"
    "镜长门闯闻阔隆雅雷雯霄霆霖青靖静韦音韬韵顶颂颐飘馨香高魁")
# Names as other peoples of China write them in characters.
TURKIC = ("买买提 阿卜杜 热合曼 艾力 吐尔逊 古丽 阿依 努尔 买提 木沙 依明 卡德尔 玉素甫 麦麦提 塔依尔 阿布都 克里木 赛买提 沙吾提 帕提古丽 阿孜古丽 "
          "巴哈尔 亚森 肉孜 库尔班 叶尔肯 哈力克 达吾提 祖农 司马义").split()
TIBETAN = "扎西 多吉 次仁 卓玛 平措 尼玛 格桑 央金 旺堆 白玛 丹增 洛桑 索朗 德吉 顿珠 仁青 巴桑 达瓦 拉姆 贡嘎".split()
MONGOL = "巴特尔 其其格 乌云 娜仁 苏和 格日勒 那日松 宝力德 哈斯 额尔敦 斯琴 高娃 呼和 布和 朝鲁 萨仁 图雅 阿古拉 孟和 吉日嘎拉".split()
YI = "阿木 阿呷 曲比 吉克 沙马 尔古 莫色 拉则 吉木 子日 阿果 色布 友合 金曲 木乃 惹作 木呷 依火".split()

PROVINCES = ("北京市 上海市 天津市 重庆市 广东省 江苏省 浙江省 山东省 河南省 四川省 湖北省 湖南省 福建省 安徽省 河北省 陕西省 辽宁省 江西省 云南省 贵州省 "
             "山西省 吉林省 黑龙江省 甘肃省 海南省 青海省 广西壮族自治区 内蒙古自治区 新疆维吾尔自治区 宁夏回族自治区 西藏自治区").split()
TOWNS = (
    "深圳 广州 佛山 东莞 惠州 汕头 湛江 茂名 韶关 清远 苏州 无锡 常州 盐城 徐州 扬州 杭州 宁波 温州 绍兴 台州 济南 青岛 烟台 潍坊 菏泽 郑州 洛阳 南阳 商丘 "
    "成都 绵阳 达州 凉山 武汉 宜昌 襄阳 荆州 长沙 株洲 衡阳 岳阳 福州 厦门 泉州 漳州 合肥 阜阳 安庆 石家庄 邯郸 保定 唐山 西安 咸阳 榆林 沈阳 大连 鞍山 南昌 "
    "赣州 九江 昆明 曲靖 大理 贵阳 遵义 毕节 太原 大同 运城 长春 哈尔滨 齐齐哈尔 兰州 天水 海口 三亚 西宁 南宁 柳州 玉林 呼和浩特 包头 赤峰 乌鲁木齐 喀什 "
    "和田 伊宁 银川 固原 拉萨 日喀则 铜陵 芜湖 滁州 亳州 宿迁 泰州 湖州 衢州 丽水 莆田 龙岩 景德镇 萍乡 枣庄 聊城 滨州 鹤壁 濮阳 漯河 驻马店 黄冈 咸宁 随州 "
    "恩施 邵阳 郴州 娄底 梧州 钦州 贺州 泸州 攀枝花 内江 雅安 铜仁 昭通 普洱 渭南 汉中 酒泉 张掖 吴忠 克拉玛依").split()
COUNTIES = (
    "南山区 福田区 宝安区 天河区 海淀区 朝阳区 西城区 浦东新区 徐汇区 江北区 渝中区 鼓楼区 玄武区 西湖区 余杭区 历下区 金水区 武侯区 江汉区 岳麓区 思明区 "
    "龙华区 城关区 新城区 雁塔区 和平区 铁西区 青云谱区 盘龙区 云岩区 小店区 南关区 道里区 太和县 固始县 封丘县 曹县 滕州市 邳州市 沭阳县 昆山市 义乌市 慈溪市 "
    "永嘉县 瑞安市 安溪县 上杭县 霞浦县 临泉县 枞阳县 怀宁县 宁乡市 湘潭县 祁东县 监利市 仙桃市 麻城市 双流区 仁寿县 昭觉县 布拖县 威宁县 仁怀市 镇雄县 宣威市 "
    "蓝田县 神木市 定边县 会宁县 秦安县 莎车县 墨玉县 霍城县 海原县 曲水县 桑日县 融水县 博白县 陆川县 翁牛特旗 土默特左旗 肇源县 讷河市 榆树市 庄河市 "
    "滦南县 魏县 武安市 清苑区 徐闻县 廉江市 普宁市 陆丰市 兴宁市 雷州市 万宁市").split()
STREETS = ("中山路 人民路 解放路 建设路 文化路 和平街 新华街 滨河路 深南大道 迎宾大道 幸福里 向阳街 朝阳路 长江路 黄河路 光明路 胜利街 团结路 环城北路 工业园路 "
           "桂花巷 槐树街 学府路 福星路 翠竹路 泰山路 兴业路 育才路 振兴街 凤凰路").split()
VILLAGES = ("李家村 王庄村 大榆树村 石桥村 杨柳村 东岗村 西沟村 上河村 下洼村 红旗村 前进村 龙潭村 青山村 白水村 黄泥坝村 马鞍村 双塘村 新民村 沙坪村 竹林村 "
            "枣园村 柿子沟村 罗家湾村 三岔村").split()
FIRMS = ("华信 恒通 鼎盛 宏达 金源 瑞丰 东升 天成 众诚 博远 汇丰源 中联 永安 德信 腾龙 佳和 正大 隆昌 嘉禾 星火 海川 国泰 万隆 顺发 立信 晟辉 祥瑞 锦程 "
         "亿佳 凯旋").split()
FIRM_KINDS = ("科技有限公司 贸易有限公司 建筑工程有限公司 房地产开发有限公司 物业管理有限公司 律师事务所 餐饮管理有限公司 物流有限公司 食品有限公司 投资咨询有限公司 "
              "电子厂 服装厂 信用社 农业合作社 小额贷款有限公司 劳务派遣有限公司").split()
CRIMES = ("盗窃 诈骗 抢劫 抢夺 故意伤害 故意杀人 交通肇事 危险驾驶 寻衅滋事 聚众斗殴 贩卖毒品 容留他人吸毒 非法拘禁 敲诈勒索 职务侵占 挪用资金 受贿 行贿 贪污 "
          "开设赌场 妨害公务 合同诈骗 信用卡诈骗 非法经营 强奸 猥亵儿童 放火 滥伐林木 掩饰、隐瞒犯罪所得 帮助信息网络犯罪活动 拒不执行判决、裁定").split()
PEOPLES = ("汉族 汉族 汉族 汉族 汉族 汉族 回族 满族 壮族 苗族 彝族 藏族 蒙古族 维吾尔族 土家族 侗族 瑶族 朝鲜族 白族 哈尼族 黎族 傣族 畲族 布依族 羌族 "
           "哈萨克族").split()
EDUCATION = "文盲 小学 初中 高中 中专 大专 大学 本科 大学本科 硕士研究生 职高 技校".split()
JOBS = ("农民 无业 工人 务工 司机 个体户 教师 医生 学生 公司职员 退休 保安 厨师 会计 业务员 快递员 建筑工人 自由职业 村民 经理 护士 公务员 货车司机 "
        "美容师 电工 无固定职业").split()
ROLES = ("被告人 原告 被告 上诉人 被上诉人 申请人 被申请人 被害人 犯罪嫌疑人 第三人 原审被告人 反诉原告 再审申请人 申请执行人 被执行人 法定代理人 证人 "
         "委托诉讼代理人 自诉人 抗诉机关认定的被告人 原告人").split()
RELATIVES = "父亲 母亲 儿子 女儿 妻子 丈夫 哥哥 姐姐 弟弟 妹妹 祖父 外祖母 叔叔 姑姑 侄子 孙女".split()
PLATES = list("粤京沪苏浙鲁豫川鄂湘闽皖冀陕辽赣云贵晋吉黑甘琼桂蒙新宁藏渝津")
DIGITS = "〇一二三四五六七八九"
LUNAR_MONTHS = ["正", "二", "三", "四", "五", "六", "七", "八", "九", "十", "冬", "腊"]


class Writer:
    """Fills templates of one split. One `random.Random` decides everything."""

    def __init__(self, split, seed):
        self.templates = SPLITS[split]
        self.train = split == "train"
        self.random = random.Random("%s %d" % (split, seed))

    def sentence(self):
        """A sentence as (text, entities, loose), `loose` being the character ranges of names and places."""
        while True:
            template = self.pick(self.templates)
            # Some longer texts: two or three sentences on end.
            for more in (61, 62, 63):
                if self.random.random() < 0.9:
                    break
                template = template.rstrip("。") + "。" + renumbered(self.pick(self.templates), more)
            if self.train:
                template = self.surrounded(template)
            made = self.fill(self.expand_persons(template))
            if made and SHORTEST <= len(made[0]) <= LONGEST:
                return made

    def surrounded(self, template):
        if self.random.random() < 0.12:
            template = self.pick(templates.BEFORE) + self.pick([",", ",", ":"]) + template
        if self.random.random() < 0.12:
            template = template.rstrip("。") + self.pick([",", "。", ";"]) + self.pick(templates.AFTER)
        return template

    def fill(self, template):
        """The sentence, or None where two slots' digits would run together."""
        style = Style(self.random)
        self.earliest = 0
        values, text, entities, loose = {}, "", [], []
        for literal, slot in re.findall(r"([^{]*)(?:\{(\w+)\})?", template):
            text += style.literal(literal)
            if not slot:
                continue
            if slot not in values:
                values[slot] = self.value(slot.rstrip("0123456789"), style)
            start = len(text)
            if text[-1:].isdigit() and values[slot][0].isdigit():
                return None
            text += values[slot]
            if slot.rstrip("0123456789") == "b":
                entities.append([start, len(text), "BD"])
            elif slot.rstrip("0123456789") in LOOSE:
                loose.append((start, len(text)))
        return text, entities, loose

    def value(self, kind, style):
        if kind in ("b", "d", "m"):
            return getattr(self, SLOTS[kind])(style)
        made = getattr(self, SLOTS[kind])() if isinstance(SLOTS[kind], str) else self.random.choice(SLOTS[kind])
        if kind == "case":
            return style.literal(made)
        return style.number(made) if kind in ("age", "money", "id", "phone") else made

    def pick(self, pool):
        return self.random.choice(pool)

    def open_pick(self, pool):
        """From a pool whose every fifth item is kept from training."""
        while True:
            at = self.random.randrange(len(pool))
            if at % 5 != 4 or not self.train:
                return pool[at]

    # Persons

    def expand_persons(self, template):
        # A person's own slots are numbered from 40 on, so that they meet none of the template's.
        number = iter(range(40, 1000))
        return re.sub(r"\{P(\d*)\}", lambda found: self.person(next(number), found.group(1).endswith("0")), template)

    def person(self, number, dateless):
        """The template of a description of a person: a name and up to eight fields in a free order."""
        field = {
            "sex": ["{sex}"] * 5 + ["{sex}性", "性别{sex}", "性别:{sex}", "({sex})"],
            "birth": ["{b}出生"] * 4 + ["{b}生"] * 4 + [
                "生于{b}", "生于{b}", "出生于{b}", "出生于{b}", "出生日期{b}", "出生日期:{b}", "出生日期为{b}", "出生年月:{b}", "出生年月{b}",
                "{b}出生于{place}", "{b}生于{place}", "于{b}出生于{place}", "于{b}生于{place}", "于{b}出生", "出生时间:{b}", "生日:{b}", "生日为{b}",
                "系{b}出生", "{b}生人", "{b}出生人", "{b}出生的", "{b}"],
            "people": ["{eth}"] * 4 + ["民族:{eth}", "民族{eth}"],
            "schooling": ["{edu}文化", "{edu}文化程度", "文化程度{edu}", "文化程度:{edu}", "{edu}毕业", "{edu}学历"],
            "job": ["{job}", "{job}", "职业:{job}", "系{firm}员工", "原系{firm}职工", "在{firm}工作"],
            "home": ["住{addr}", "住{addr}", "户籍地{addr}", "户籍所在地{addr}", "住址:{addr}", "现住{addr}", "住所地{addr}", "家住{addr}",
                     "{place}人", "籍贯{place}", "出生地{place}", "暂住{addr}"],
            "number": ["公民身份号码{id}", "身份证号码{id}", "身份证号:{id}", "公民身份证号码:{id}", "居民身份证号{id}"],
            "more": ["联系电话{phone}", "{d}参加工作", "{d}因犯{crime}罪被判处有期徒刑{term}", "{d}被取保候审", "现年{age}岁", "{d}入党", "聋哑人",
                     "系原告之{rel}", "{d}登记结婚", "{d}入职", "群众", "中共党员"],
        }
        usual = ["sex", "birth", "people", "schooling", "job", "home", "number", "more"]
        kept = [name for name in usual if name == "birth" or self.random.random() < 0.5]
        if self.random.random() < 0.4:
            self.random.shuffle(kept)
        if dateless:
            kept = [name for name in kept if name != "birth"] or ["sex"]
        name = self.pick(["{role}{n}"] * 4 + ["{role}:{n}", "{n}", "{role}(自报){n}", "{n}({role})", "姓名:{n}"])
        name += self.pick([""] * 6 + ["(曾用名{n5})", "(别名{n5})", "(又名{n5})", "(绰号“阿{s5}”)", "(小名{s5}娃)"])
        between = self.pick([","] * 8 + [";", "、", " "])
        parts = [name] + [self.pick(field[name]) for name in kept]
        if self.random.random() < 0.1:  # the rest in brackets, after the name
            text = parts[0] + "(" + between.join(parts[1:]) + ")"
        else:
            text = between.join(parts)
        return re.sub(r"\{([a-z]+)\d*\}", lambda slot: "{%s%d}" % (slot.group(1), number + (500 if slot.group(0)[-2] == "5" else 0)), text)

    def name(self):
        chance = self.random.random()
        surname = self.pick(COMPOUND_SURNAMES) if self.random.random() < 0.06 else self.open_pick(SURNAMES)
        if chance < 0.14:  # as published judgments hide it
            return surname + self.pick(["某", "某", "某某", "某甲", "某乙", "某1", "某2", "某某1", "×", "××", "X", "XX", "*", "大某", "小某"])
        if chance < 0.22:
            people = self.pick([TURKIC, TURKIC, TIBETAN, MONGOL, YI])
            return self.open_pick(people) + (self.pick(["·", "·", "•", ""]) if people is TURKIC else "") + self.open_pick(people)
        return surname + "".join(self.open_pick(GIVEN) for _ in range(1 if chance < 0.45 else 2))

    def surname(self):
        return self.open_pick(SURNAMES)

    # Places, offices, firms

    def place(self):
        province, town, county = self.pick(PROVINCES), self.open_pick(TOWNS) + "市", self.open_pick(COUNTIES)
        return self.pick([province + county, province + town, province + town + county, town + county, town, county])

    def address(self):
        house = self.pick(["%d号", "%d号", "%d号附1号", "%d弄", "%d栋", "%d组", "%d队"]) % self.random.randint(1, 400)
        if self.random.random() < 0.4:
            return self.place() + self.pick(["", "城关镇", "新店镇", "龙山乡", "河西镇"]) + self.open_pick(VILLAGES) + house
        room = self.pick(["", "", "%d室", "%d房"])
        return self.place() + self.open_pick(STREETS) + house + (room % self.random.randint(101, 2808) if room else "")

    def court(self):
        return self.place() + "人民法院" if self.random.random() < 0.7 else self.open_pick(TOWNS) + "市中级人民法院"

    def prosecutor(self):
        return self.place() + "人民检察院"

    def police(self):
        return self.place() + self.pick(["公安局", "公安局", "公安局刑侦大队", "公安分局", "派出所"])

    def firm(self):
        return self.pick(["", self.open_pick(TOWNS) + "市", self.open_pick(TOWNS)]) + self.open_pick(FIRMS) + self.pick(FIRM_KINDS)

    # Numbers

    def identity(self):
        year, month, day = self.day_of_birth()
        region, order = self.random.randint(110101, 659004), self.random.randint(1, 999)
        whole = "%06d%04d%02d%02d%03d%s" % (region, year, month, day, order, self.pick("0123456789X"))
        hide = self.random.random()
        if hide < 0.1:
            return whole[:6] + self.pick(["********", "××××××××"]) + whole[14:]
        if hide < 0.2:
            return whole[:14] + self.pick(["****", "××××", "…"])
        if hide < 0.25:
            return whole[:10] + "XXXX" + whole[14:]
        return whole

    def phone(self):
        return "1%010d" % self.random.randint(3000000000, 9999999999)

    def case(self):
        year, number = self.random.randint(1998, 2024), self.random.randint(1, 9999)
        where = self.pick(PLATES) + self.pick(["", "%02d" % self.random.randint(1, 20), "%04d" % self.random.randint(101, 2999)])
        kind = self.pick(["刑初", "民初", "民终", "刑终", "执", "行初", "民申", "刑更", "执恢"])
        form = self.pick(["(%d)%s%s%d号"] * 3 + ["〔%d〕%s%s%d号", "(%d)%s%s字第%d号"])
        return form % (year, where, kind, number)

    def money(self):
        amount = self.pick([self.random.randint(1, 99) * 1000, self.random.randint(100, 999999), self.random.randint(1, 90) * 10000])
        return self.pick(["%d", "%d", "{:,}".format(amount).replace("%", ""), "%.2f"]).replace("%d", str(amount)).replace("%.2f", "%.2f" % amount)

    def age(self):
        return str(self.random.randint(13, 89))

    def term(self):
        return self.pick(["%s年" % self.pick("一二三四五六七八九十"), "%s年%s个月" % (self.pick("一二三四五六"), self.pick("二三六九")), "%s个月" % self.pick("六七八九")])

    def time(self):
        hour, minute = self.random.randint(0, 23), self.random.randint(0, 59)
        return self.pick(["%d时许" % hour, "%d时%d分" % (hour, minute), "%d时%02d分许" % (hour, minute), "晚上", "凌晨%d时" % (hour % 6), "下午%d点左右" % (hour % 7 + 1)])

    def plate(self):
        return self.pick(PLATES) + self.pick("ABCDEFG") + "".join(self.pick("0123456789ABCDEFGHJK") for _ in range(5))

    # Dates. Both kinds are written in the same ways, and their years overlap: only the words around them tell them apart.

    def day_of_birth(self):
        year = self.random.randint(1935, 2004) if self.random.random() < 0.8 else self.random.randint(2005, 2022)
        return year, self.random.randint(1, 12), self.random.randint(1, 28)

    def birth_date(self, style):
        day = self.day_of_birth()
        self.earliest = max(self.earliest, day[0] + 1)
        return style.date(*day)

    def other_date(self, style):
        """Within one sentence, after the dates before it."""
        if self.earliest and self.random.random() < 0.6:
            year = self.earliest + self.random.choice([0, 0, 0, 1, 1, 2, 3, 5, 10, 20, 30])
        else:
            year = self.random.randint(2000, 2024) if self.random.random() < 0.6 else self.random.randint(1960, 2024)
        year = min(max(year, self.earliest), 2024)
        self.earliest = year
        return style.date(year, self.random.randint(1, 12), self.random.randint(1, 28))

    def month_day(self, style):
        return style.number("%d月%d日" % (self.random.randint(1, 12), self.random.randint(1, 28)))


class Style:
    """How one sentence is written: its punctuation, its digits and its way with dates."""

    def __init__(self, rng):
        self.random = rng
        self.ascii_marks = rng.random() < 0.15
        self.wide_digits = rng.random() < 0.1
        self.notation = self.any_notation()

    def any_notation(self):
        return self.random.choices(list(NOTATIONS), weights=list(NOTATIONS.values()))[0]

    def literal(self, text):
        return text if self.ascii_marks else text.translate(TO_WIDE_MARKS)

    def number(self, text):
        return text.translate(TO_WIDE_DIGITS) if self.wide_digits else text

    def date(self, year, month, day):
        # Mostly one notation in a sentence, as people write.
        notation = self.notation if self.random.random() < 0.7 else self.any_notation()
        return self.number(written_date(notation, year, month, day, self.random))


# The ways to write a date, and how often each is drawn.
NOTATIONS = {
    "{y}年{m}月{d}日": 30, "{y}年{m:02}月{d:02}日": 6, "{y}年{m}月{d}号": 2, "{y}年{m}月{d}": 1, "{y}.{m}.{d}": 4, "{y}.{m:02}.{d:02}": 5,
    "{y}-{m}-{d}": 4, "{y}-{m:02}-{d:02}": 5, "{y}/{m}/{d}": 3, "{y}/{m:02}/{d:02}": 2, "{y}{m:02}{d:02}": 2, "{y}年{m}月": 8, "{y}.{m:02}": 1, "{y}-{m:02}": 1,
    "{y}年": 3, "{yy:02}年{m}月{d}日": 3, "{yy:02}年{m}月": 3, "{yy:02}.{m}.{d}": 1, "{y} 年 {m} 月 {d} 日": 3, "{y}年 {m}月 {d}日": 1, "{y} 年{m} 月{d} 日": 1,
    "{y} 年 {m} 月": 1, "{cy}年{cm}月{cd}日": 8, "{cy}年{cm}月": 3, "{cyy}年{cm}月{cd}日": 1, "{cyy}年{cm}月": 1, "{y}年农历{lm}月{ld}": 1, "农历{y}年{lm}月{ld}": 1,
}


def written_date(notation, year, month, day, rng):
    zero = rng.choice("〇〇〇零○O0") if rng.random() < 0.5 else "〇"
    chinese_year = "".join(DIGITS[int(digit)] for digit in str(year)).replace("〇", zero)
    return notation.format(
        y=year, m=month, d=day, yy=year % 100, cy=chinese_year, cyy=chinese_year[2:], cm=chinese_number(month), cd=chinese_number(day),
        lm=LUNAR_MONTHS[month - 1], ld="初" + chinese_number(day) if day <= 10 else ("廿" + DIGITS[day - 20] if day > 20 else chinese_number(day)))


def chinese_number(number):
    """1 to 99: 十二, 二十, 二十八."""
    tens, ones = divmod(number, 10)
    return {0: "", 1: "十"}.get(tens, DIGITS[tens] + "十") + (DIGITS[ones] if ones else "")


# The full-width forms lie 0xFEE0 above the ASCII ones. Templates are written with ASCII punctuation, and most sentences are not.
TO_WIDE_MARKS = {ord(mark): ord(mark) + 0xFEE0 for mark in ",:;()?"}
TO_WIDE_DIGITS = {ord(digit): ord(digit) + 0xFEE0 for digit in "0123456789"}

# What fills a slot: a list to draw from, or the Writer's method.
SLOTS = {
    "b": "birth_date", "d": "other_date", "m": "month_day", "n": "name", "s": "surname", "place": "place", "addr": "address", "court": "court",
    "proc": "prosecutor", "police": "police", "firm": "firm", "id": "identity", "phone": "phone", "case": "case", "money": "money", "age": "age",
    "term": "term", "time": "time", "plate": "plate", "sex": ["男", "女"], "eth": PEOPLES, "edu": EDUCATION, "job": JOBS, "role": ROLES,
    "act": templates.ACTS, "what": templates.EVENTS, "did": templates.HAPPENED, "label": templates.LABELS,
    "rel": RELATIVES, "crime": CRIMES,
}
# Slots with an open set of characters: names and places.
LOOSE = {"n", "s", "place", "addr", "court", "proc", "police", "firm", "job", "crime"}


def renumbered(template, prefix):
    """The same template with slots that meet none of another's: {d2} becomes {d612}."""
    return re.sub(r"\{([a-zA-Z]+)(\d*)\}", r"{\g<1>%d\g<2>}" % prefix, template)


def check():
    groups = [set(group) for group in SPLITS.values()]
    assert sum(map(len, groups)) == len(set().union(*groups)), "a template is in two splits"


def main():
    parser = argparse.ArgumentParser(description="Make sentences with marked birth dates, as JSON lines on standard output.")
    parser.add_argument("--split", choices=list(SPLITS), required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    check()
    writer = Writer(args.split, args.seed)
    for _ in range(args.count):
        text, entities, _ = writer.sentence()
        sys.stdout.buffer.write((json.dumps({"text": text, "entities": entities}, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    main()
